"""Token log-probabilities → a probability for each field.

The engine's log-probabilities are taken after the grammar's mask: a forced token has 0, and the sum over a value's
tokens is log P(value | legal, what came before it in the answer).
"""

import math
from collections.abc import Mapping, Sequence

from batch.tokens import Renderer


def field_scores(
    renderer: Renderer, token_ids: Sequence[int], logprobs: Sequence[float], spans: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """Probability of each field's chosen value, 0 to 1.

    `spans` are byte spans ``(start, end)`` in the answer, in order and apart (:meth:`Contract.parse` gives them). A
    token counts for the span that it overlaps, so one that closes a label and begins what follows counts as well.
    """
    scores = {}
    remaining = iter(spans.items())
    name, (start, end) = next(remaining)
    position, total = 0, 0.0
    for token_id, logprob in zip(token_ids, logprobs, strict=True):
        begin = position
        position += len(renderer.token_bytes(token_id))
        if position > start and begin < end:
            total += logprob
        while position >= end:  # more than once where one token holds several values
            scores[name] = math.exp(min(total, 0.0))
            following = next(remaining, None)
            if following is None:
                return scores
            name, (start, end) = following
            total = logprob if position > start else 0.0
    raise ValueError("the answer's tokens end before its last field")
