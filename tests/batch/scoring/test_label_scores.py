"""The score of each label of a set: the probability that it comes next, given those before it."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.engine import adapter_spec, alternatives
from batch.scoring.lane import Lane
from batch.scoring.score import part_scores, parts_of
from tests import qwen
from tests.batch.scoring.test_runner_up import Toy
from tests.batch.scoring.test_score import Cut

LABELS = {"ap": "", "app": "", "apple": "", "low": ""}
SET = {"type": "labels", "optional": True, "labels": LABELS}


@pytest.fixture(scope="module")
def contract() -> Contract:
    fields = [{"name": "first", **SET}, {"name": "last", **SET}]
    return Contract.from_dict({"name": "sets", "prompt": {"system": "Choose.\n{fields}"}, "fields": fields})


@pytest.fixture(scope="module")
def renderer(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer.load(qwen.build(tmp_path_factory.mktemp("qwen")), contract)


def by_hand(pieces: list[str], chances: list[float], others: dict[int, dict[str, float]]) -> list[float]:
    """Scores of "app" and "low" in the set that `pieces` spell, beside which `others` were likely."""
    more = list(dict.fromkeys(piece for each in others.values() for piece in each))
    cut = cast(Renderer, Cut(*pieces, *more))
    told = {
        place: [(len(pieces) + more.index(piece), math.log(chance)) for piece, chance in each.items()]
        for place, each in others.items()
    }
    # as `Contract.parts` has them: "app" ends with its quote, which tells it from "apple"
    parts = parts_of(cut, range(len(pieces)), [(1, 6), (6, 11)])
    return list(part_scores(cut, parts, list(map(math.log, chances)), told))


def test_a_token_that_closes_a_label_and_opens_the_next_is_shared_between_them() -> None:
    """Fails when it counts in whole for both: 0.6 and 0.6."""
    pieces = ['["', "app", '","', "low", '"]']
    sure = {2: {'"]': 0.4}}
    assert by_hand(pieces, [1, 1, 0.6, 1, 1], sure) == pytest.approx([1, 0.6])
    unsure = {1: {"low": 0.1}, 2: {'"]': 0.15, "le": 0.2, '"': 0.05}}
    assert by_hand(pieces, [1, 0.9, 0.6, 0.7, 1], unsure) == pytest.approx([0.9 * 0.8, 0.6 / 0.8 * 0.7])
    alone = ['["', "app", '"', ',"', "low", '"]']
    assert by_hand(alone, [1, 1, 0.8, 0.6, 1, 1], {3: {"]": 0.4}}) == pytest.approx([0.8, 0.6])


def test_a_token_of_no_probability_is_a_score_of_zero() -> None:
    """As broken weights give it: no reason to end the run."""
    pieces = ['["', "app", '","', "low", '"]']
    contract = [(1, 6), (6, 11)]
    cut = cast(Renderer, Cut(*pieces))
    for least in (-800.0, -math.inf):
        scores = part_scores(cut, parts_of(cut, range(5), contract), [0.0, 0.0, least, 0.0, 0.0], {})
        assert scores[0] == 0 or math.isnan(scores[0])


def test_whatever_else_a_token_holds() -> None:
    assert by_hand(['["app","low', '"]'], [0.3, 1], {0: {'["app"]': 0.2, '["apple': 0.4}}) == pytest.approx(
        [0.5, 0.6]
    )
    assert by_hand(['["a', 'pp","low"]'], [1, 0.3], {1: {'pp"]': 0.2, 'pp","': 0.1}}) == pytest.approx(
        [0.6, 0.5]
    )


def test_they_are_those_of_the_whole_distribution(contract: Contract, renderer: Renderer) -> None:
    """Of every legal answer in Qwen's vocabulary, each with a random probability."""
    lane = Lane(adapter_spec("a", None, contract, renderer), contract, renderer)
    several = 0
    for seed in range(30):
        toy = Toy(contract, renderer, seed)
        row = lane.score(toy.complete(len(LABELS) * 4), "x")
        assert row.answer is not None and row.scores is not None and row.label_scores is not None
        for name, parts in row.label_scores.items():
            ranked = toy.distribution(row.answer, name)
            chosen = row.answer[name]
            begun = [
                sum(chance for value, chance in ranked.items() if value[:count] == chosen[:count])
                for count in range(len(chosen) + 1)
            ]
            exact = [after / before for before, after in itertools.pairwise(begun)]
            assert parts == pytest.approx(exact, abs=1e-9)
            assert row.scores[name] == pytest.approx(ranked[chosen], abs=1e-9)
            several += len(parts) > 1
    assert several


def test_what_else_was_likely_is_told_in_a_set_and_not_in_a_text(contract: Contract, tiny_base: Path) -> None:
    note: dict[str, Any] = {"name": "note", "type": "text", "max_chars": 20}
    both = Contract.from_dict({**contract.raw, "fields": [{"name": "first", **SET}, note]})
    renderer = Renderer.load(tiny_base, both)
    ids = renderer.encode_answer({"first": ("app", "low"), "note": "A note."})
    places = range(0, 2 * len(ids), 2)
    flat = SimpleNamespace(  # vLLM's: the chosen token and one more at each place
        start_indices=list(places),
        end_indices=[place + 2 for place in places],
        token_ids=[token for each in ids for token in (each, 7)],
        logprobs=[math.log(0.6), math.log(0.4)] * len(ids),
    )
    _, found = alternatives.read(flat, ids, adapter_spec("a", None, both, renderer).drafts)
    text = renderer.decode(ids[:-1])
    starts = [len(renderer.decode(ids[:index])) for index in range(len(ids))]
    told = {start for index, start in enumerate(starts) if index in found}
    assert {start for start in starts if start < text.index('"note"')} <= told
    assert not {start for start in starts if text.index("A note.") <= start <= text.rindex('"')} & told
