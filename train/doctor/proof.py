"""Proof that an adapter is served whole: what the engine answers, against PEFT's own reading of the same
adapter.

Along each served answer, PEFT's probabilities under the same grammar are compared with the served ones. An
adapter of which a layer is left out, scaled or rounded otherwise differs; one that is served as it is differs
by rounding.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoConfig

from batch.adapter.bundle import Bundle
from batch.engine import Completion
from batch.scoring.score import span_scores, token_spans
from train.config import Quantisation
from train.doctor.grammar import ServedGrammar
from train.doctor.skew import masked_logprobs
from train.fit.model import load_trained

NOISE = 0.05  # difference of a value's probability; bfloat16 moves one by 0.01 to 0.02 near a half
REQUESTS = (
    "A colleague asks for help with a task at work.",
    "Please build a dashboard of last year's figures for each region.",
    "Find our travel policy.",
    "Write the customer's new address into the system, then send a note to the team.",
    "Bitte ein Überblick über alle offenen Bestellungen.",
    "Summarise the three attached contracts; nobody outside may see them!",
    "why does the printer on floor 2 not work",
    "Remind me on Friday.",
)


@dataclasses.dataclass(frozen=True)
class ServingProof:
    """`differs`: the largest difference of a value's probability; `logprob`: of any token's (nats)."""

    answers: int
    differs: float
    logprob: float

    @property
    def holds(self) -> bool:
        return self.answers > 0 and self.differs <= NOISE

    def __str__(self) -> str:
        return f"{self.answers} answers, P of a value differs from PEFT's by {self.differs:.2g} at most"


def prove(
    bundle: Bundle, base: Path, requests: Sequence[str], completions: Sequence[Completion]
) -> ServingProof:
    """Compare the engine's completions of `requests` with PEFT on the unquantised base. Raises
    `AdapterError`.
    """
    renderer, contract = bundle.renderer, bundle.contract
    config = AutoConfig.from_pretrained(base, local_files_only=True).get_text_config()
    grammar = ServedGrammar(bundle.path, contract.grammar, renderer.end_of_turn_id, config.vocab_size)
    model = load_trained(base, Quantisation(type="none"), bundle.path)
    values, tokens = [], []
    for request, completion in zip(requests, completions, strict=True):
        if completion.finish != "stop":
            continue
        ids = completion.token_ids
        logprobs = masked_logprobs(model, renderer.encode_prompt(request), ids, grammar)
        ours = logprobs[np.arange(len(ids)), ids]
        tokens.append(float(np.abs(ours - np.asarray(completion.logprobs)).max()))
        _, spans = contract.parse(renderer.decode(ids))
        places = token_spans(renderer, ids, spans)
        mine, theirs = span_scores(places, ours.tolist()), span_scores(places, completion.logprobs)
        values += [abs(mine[name] - theirs[name]) for name in places]
    return ServingProof(len(tokens), max(values, default=0.0), max(tokens, default=0.0))
