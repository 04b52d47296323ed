"""The tokens that were likely in the place of a label's, as the engine tells them beside the chosen ones."""

from typing import Any

from batch.engine import Alternatives
from batch.engine.drafts import AnswerPath

COUNT = 5  # likeliest tokens at a place, the chosen one among them, which are told where
LEAST = 1e-4  # is the least probability that all others than the chosen one have together
NEGLIGIBLE = -30.0  # log-probability: of a token that need not be told of


def read(flat: Any, ids: list[int], path: AnswerPath) -> tuple[list[float], Alternatives]:
    """vLLM's flat log-probabilities of an answer as those of its tokens, and the alternatives. At each place
    it lists the chosen token, then the likeliest ones, illegal ones with -inf.
    """
    found, state = {}, 0
    for index, token in enumerate(ids):
        start, end = flat.start_indices[index], flat.end_indices[index]
        if state not in path.prose and flat.logprobs[start] < -LEAST:
            listed = zip(flat.token_ids[start + 1 : end], flat.logprobs[start + 1 : end], strict=True)
            if others := tuple(each for each in listed if each[0] != token and each[1] > NEGLIGIBLE):
                found[index] = others
        state = path.step(state, token)
    return [flat.logprobs[first] for first in flat.start_indices], found
