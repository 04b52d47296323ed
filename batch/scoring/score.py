"""Token log-probabilities → a probability for each field.

The engine's log-probabilities are taken after the grammar's mask: a forced token has 0, and the sum over a
value's tokens is log P(value | legal, what came before it in the answer).

A value may be spelt by several cuts into tokens (`low` as `l`, `ow`). The score is the probability of the
spelling that was generated, so a lower bound of P(value); `tests/batch/scoring/test_score_exact.py` adds up
every path to 1 and bounds what is left out.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from batch.adapter.renderer import Renderer

Name = TypeVar("Name", bound=Hashable)  # of a field, or what else a span is known by


def token_spans(
    renderer: Renderer, token_ids: Sequence[int], spans: Mapping[Name, tuple[int, int]]
) -> dict[Name, slice]:
    """The tokens of each field's value: what of its score depends on the answer alone.

    `spans` are byte spans ``(start, end)`` in the answer, in order and apart (:meth:`Contract.parse` gives
    them). A token counts for the span that it overlaps, so one that closes a label and begins what follows
    counts as well.
    """
    found: dict[Name, slice] = {}
    if not spans:
        return found
    remaining = iter(spans.items())
    name, (start, end) = next(remaining)
    position, first = 0, None
    for index, token_id in enumerate(token_ids):
        position += len(renderer.token_bytes(token_id))
        if first is None and position > start:
            first = index
        while position >= end:  # more than once where one token holds several values
            found[name] = slice(first, index + 1)
            following = next(remaining, None)
            if following is None:
                return found
            name, (start, end) = following
            first = index if position > start else None
    raise ValueError("the answer's tokens end before its last field")


def span_scores(spans: Mapping[Name, slice], logprobs: Sequence[float]) -> dict[Name, float]:
    """Probability of each field's chosen value, 0 to 1: exp of the sum of its tokens' log-probabilities.
    Rounding never makes more than 1.
    """
    return {
        name: 1.0 if (total := sum(logprobs[span])) >= 0 else math.exp(total) for name, span in spans.items()
    }
