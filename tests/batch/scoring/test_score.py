"""Scores: hand-computed products of token log-probabilities, and a brute-force check of every cut into tokens."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.scoring.score import span_scores, token_spans

TEXT = '{"platform":"Databricks app","review":true,"note":"ok"}'


class Cut:
    """A renderer whose token `i` is the `i`-th piece of a given cut."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = [piece.encode() for piece in pieces]

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]


def field_scores(
    renderer: Renderer,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    spans: Mapping[str, tuple[int, int]],
    in_front: Collection[str] = (),
) -> dict[str, float]:
    """Probability of each field's value, as a lane takes it off a completion."""
    return span_scores(token_spans(renderer, token_ids, spans, in_front), logprobs)


def score(
    pieces: list[str], probabilities: list[float], spans: dict[str, tuple[int, int]]
) -> dict[str, float]:
    logprobs = [math.log(p) for p in probabilities]
    return field_scores(cast(Renderer, Cut(*pieces)), range(len(pieces)), logprobs, spans)


def spans_of(text: str, **values: str) -> dict[str, tuple[int, int]]:
    return {name: (start := text.index(value), start + len(value)) for name, value in values.items()}


SPANS = spans_of(TEXT, platform='"Databricks app"', review="true")


def test_the_product_of_a_values_tokens() -> None:
    pieces = [
        '{"',
        "platform",
        '":',
        '"',
        "Data",
        "bricks",
        " app",
        '"',
        ',"review":',
        "true",
        ',"note":"',
        "ok",
        '"}',
    ]
    chances = [1, 1, 1, 1, 0.5, 1, 1, 0.8, 1, 0.9, 1, 0.01, 0.02]
    assert "".join(pieces) == TEXT
    assert score(pieces, chances, SPANS) == pytest.approx({"platform": 0.4, "review": 0.9})


def test_labels_that_share_a_prefix_part_at_the_closing_quote() -> None:
    """Where "Databricks app" could go on as "Databricks app + …", the quote's probability is the label's."""
    pieces = ['{"platform":"', "Databricks", " app", '","', "review", '":', "true", ',"note":"ok"}']
    chances = [1, 0.9, 1, 0.25, 1, 1, 1, 1]
    assert score(pieces, chances, SPANS) == pytest.approx({"platform": 0.225, "review": 1.0})


def test_a_token_that_opens_a_label_counts() -> None:
    pieces = ['{"platform', '":"Data', "bricks app", '","review":tr', 'ue,"note":"ok"}']
    chances = [0.1, 0.5, 0.5, 0.5, 0.5]
    assert score(pieces, chances, SPANS) == pytest.approx({"platform": 0.125, "review": 0.25})


def test_forced_tokens_are_certain() -> None:
    assert score(list(TEXT), [1.0] * len(TEXT), SPANS) == {"platform": 1.0, "review": 1.0}


def test_rounding_never_makes_more_than_certain() -> None:
    result = field_scores(cast(Renderer, Cut(*TEXT)), range(len(TEXT)), [1e-7] * len(TEXT), SPANS)
    assert result == {"platform": 1.0, "review": 1.0}


def test_one_token_that_holds_everything() -> None:
    assert score([TEXT], [0.3], SPANS) == pytest.approx({"platform": 0.3, "review": 0.3})


def test_an_impossible_token_scores_zero() -> None:
    result = field_scores(cast(Renderer, Cut('{"platform":', TEXT[12:])), [0, 1], [0.0, -math.inf], SPANS)
    assert result == {"platform": 0.0, "review": 0.0}


def test_an_answer_that_ends_early_is_an_error() -> None:
    with pytest.raises(ValueError, match="end before its last field"):
        score([TEXT[:30]], [0.5], SPANS)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_any_cut_into_tokens_gives_the_overlapping_tokens_product(data: Any) -> None:
    text = '{"a":"x","b":true,"c":"Zürich + 1","d":false}'
    raw = text.encode()
    spans = {
        key: (s := raw.index(v.encode()), s + len(v.encode()))
        for key, v in zip("abcd", ('"x"', "true", '"Zürich + 1"', "false"), strict=True)
    }
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, len(raw) - 1)))), len(raw)]
    cut = Cut()
    cut.pieces = [raw[a:b] for a, b in pairwise(cuts)]
    logprobs = data.draw(st.lists(st.floats(-5, 0), min_size=len(cut.pieces), max_size=len(cut.pieces)))
    result = field_scores(cast(Renderer, cut), range(len(cut.pieces)), logprobs, spans)
    for name, (start, end) in spans.items():
        wanted = sum(lp for lp, (a, b) in zip(logprobs, pairwise(cuts), strict=True) if b > start and a < end)
        assert result[name] == pytest.approx(math.exp(wanted))


def test_a_real_tokenizers_answer(tiny_base: Any, contract: Contract) -> None:
    renderer = Renderer.load(tiny_base, contract)
    for answer in contract.sample_answers():
        ids = renderer.encode_answer(answer)[:-1]
        _, spans = contract.parse(renderer.decode(ids))
        assert field_scores(renderer, ids, [0.0] * len(ids), spans) == dict.fromkeys(spans, 1.0)
        result = field_scores(renderer, ids, [-0.01] * len(ids), spans)
        assert list(result) == list(spans) and all(0.5 < value < 1 for value in result.values())
