"""Token log-probabilities → a probability for each field.

The engine's log-probabilities are taken after the grammar's mask: a forced token has 0, and the sum over a
value's tokens is log P(value | legal, what came before it in the answer).

A value may be spelt by several cuts into tokens (`low` as `l`, `ow`). The score is the probability of the
spelling that was generated, so a lower bound of P(value); `tests/batch/scoring/test_score_exact.py` adds up
every path to 1 and bounds what is left out.
"""

import itertools
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.contract.fields import Field

SCORING = 2  # counted up when scores come to mean something else, so that no job and no cache mixes the two
Name = TypeVar("Name", bound=Hashable)  # of a field, or what else a span is known by


def cuts_of(field: Field, value: Any, contract: Contract, renderer: Renderer) -> frozenset[bytes]:
    """The value's text up to the end of each token, as the tokenizer cuts it in an answer; nothing of it,
    where a token ends right in front.
    """
    stand_ins = {each.name: each.stand_in for each in contract.fields}
    text = contract.serialise({**stand_ins, field.name: value})
    start = contract.parse(text)[1][field.name][0]
    ends = itertools.accumulate(len(renderer.token_bytes(token)) for token in renderer.encode_text(text))
    return frozenset(text.encode()[start:end] for end in ends if end >= start)


def told_in_front(contract: Contract, renderer: Renderer) -> frozenset[str]:
    """The scored fields of whose value a token in front of it tells something by where it ends: after `":`
    null follows where a text has `":"`, and 1 where -1 has `":-`.
    """
    return frozenset(
        field.name
        for field in contract.scored_fields
        if len({b"" in cuts_of(field, value, contract, renderer) for value in field.samples}) > 1
    )


def token_spans(
    renderer: Renderer,
    token_ids: Sequence[int],
    spans: Mapping[Name, tuple[int, int]],
    in_front: Collection[Name] = (),
) -> dict[Name, slice]:
    """The tokens of each field's value: what of its score depends on the answer alone.

    `spans` are byte spans ``(start, end)`` in the answer, in order and apart (:meth:`Contract.parse` gives
    them). A token counts for the span that it overlaps, so one that closes a label and begins what follows
    counts as well; for those `in_front`, also one that ends where the span begins (:func:`told_in_front`).
    """
    found: dict[Name, slice] = {}
    if not spans:
        return found
    remaining = iter(spans.items())
    name, (start, end) = next(remaining)
    position, first = 0, None
    for index, token_id in enumerate(token_ids):
        position += len(renderer.token_bytes(token_id))
        if first is None and position > start - (name in in_front):
            first = index
        while position >= end:  # more than once where one token holds several values
            found[name] = slice(first, index + 1)
            following = next(remaining, None)
            if following is None:
                return found
            name, (start, end) = following
            first = index if position > start - (name in in_front) else None
    raise ValueError("the answer's tokens end before its last field")


def span_scores(spans: Mapping[Name, slice], logprobs: Sequence[float]) -> dict[Name, float]:
    """Probability of each field's chosen value, 0 to 1: exp of the sum of its tokens' log-probabilities.
    Rounding never makes more than 1.
    """
    return {
        name: 1.0 if (total := sum(logprobs[span])) >= 0 else math.exp(total) for name, span in spans.items()
    }


class Part(NamedTuple):
    """The tokens of a label in a set."""

    tokens: slice
    beginning: bytes  # what the label has of its last token, where that goes on behind it; else nothing


def parts_of(
    renderer: Renderer, token_ids: Sequence[int], spans: Sequence[tuple[int, int]]
) -> tuple[Part, ...]:
    """The labels of a set, whose byte spans in the answer these are."""
    spelt = [renderer.token_bytes(token) for token in token_ids]
    starts = list(itertools.accumulate(map(len, spelt), initial=0))
    found = []
    for number, tokens in token_spans(renderer, token_ids, dict(enumerate(spans))).items():
        (_, end), last = spans[number], tokens.stop - 1
        over = starts[tokens.stop] > end
        found.append(Part(tokens, spelt[last][: end - starts[last]] if over else b""))
    return tuple(found)


def part_scores(
    renderer: Renderer,
    parts: Sequence[Part],
    logprobs: Sequence[float],
    others: Mapping[int, Sequence[tuple[int, float]]],
) -> tuple[float, ...]:
    """Probability of each label of a set, given those before it. `others` are tokens that were likely in the
    place of one, by its index ``(token, log-probability)``.

    A token that closes a label may say as well what follows (`","`, `"]`): to the label it is worth what all
    that close it so have together, and to the next label its own share of that.
    """
    found: list[float] = []
    shared, worth = -1, 0.0  # a token that goes on behind the label before, and what it was worth there
    for tokens, beginning in parts:
        total = sum(logprobs[tokens]) - (worth if tokens.start == shared else 0.0)
        if beginning:
            shared = tokens.stop - 1
            own = logprobs[shared]
            alike = (
                p for token, p in others.get(shared, ()) if renderer.token_bytes(token).startswith(beginning)
            )
            mass = math.fsum(map(math.exp, (own, *alike)))
            worth = math.log(mass) if mass else own  # too little for a float
            total += worth - own
        found.append(1.0 if total >= 0 else math.exp(total))
    return tuple(found)
