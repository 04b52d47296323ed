"""The runner-up against the whole distribution: a random probability for each token that a label may go on with, in the
spellings that the tokenizer gives."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.engine import Completion, adapter_spec
from batch.engine.alternatives import COUNT
from batch.scoring.lane import Lane, ScoredRow
from batch.scoring.output_rows import outcomes
from tests import qwen

Tokens = tuple[int, ...]

FIELDS: dict[str, dict[str, Any]] = {
    "words": {"type": "label", "labels": {"low": "", "medium": "", "high": "", "none at all": ""}},
    "one begins another": {"type": "label", "labels": {"app": "", "app + CRM": "", "apple": "", "ap": ""}},
    "in any script": {"type": "label", "labels": {"größer": "", "groß": "", "日本": "", "日本語": ""}},
    "null": {"type": "label", "optional": True, "labels": {"low": "", "lower": ""}},
    "numbers": {"type": "integer", "labels": {"1": "", "10": "", "2": "", "-1": ""}},
    "true or false": {"type": "boolean"},
}


def contract_of(kind: str) -> Contract:
    fields = [{"name": "first", **FIELDS[kind]}, {"name": "last", **FIELDS[kind]}]
    return Contract.from_dict({"name": "toy", "prompt": {"system": "Choose.\n{fields}"}, "fields": fields})


class Toy:
    """A model that spells each answer in one way, and chooses at random between those that still can follow."""

    def __init__(self, contract: Contract, renderer: Renderer, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        field = contract.fields[0]
        chosen = itertools.chain.from_iterable(
            itertools.combinations(field.values, size) for size in range(len(field.values) + 1)
        )
        values = field.values if field.ranked else [each for each in chosen if field.legal(each)]
        answers = [{"first": a, "last": b} for a in values for b in values]
        self.answers = {tuple(renderer.encode_answer(answer)[:-1]): answer for answer in answers}
        self._known: dict[Tokens, dict[int, float]] = {}

    def following(self, before: Tokens) -> dict[int, float]:
        """The tokens that go on behind `before`, each with its probability."""
        if before not in self._known:
            n = len(before)
            tokens = sorted({ids[n] for ids in self.answers if ids[:n] == before and len(ids) > n})
            shares = self._random.dirichlet([0.7] * len(tokens)) if tokens else []
            self._known[before] = dict(zip(tokens, map(float, shares), strict=True))
        return self._known[before]

    def chance(self, ids: Tokens, start: int = 0) -> float:
        return math.prod(self.following(ids[:n])[ids[n]] for n in range(start, len(ids)))

    def complete(self, listed: int) -> Completion:
        """Greedy, with the `listed` likeliest tokens beside each."""
        ids: list[int] = []
        logprobs, others = [], {}
        while shares := self.following(tuple(ids)):
            ranked = sorted(shares, key=lambda token: -shares[token])
            if len(ranked) > 1:
                others[len(ids)] = tuple((token, math.log(shares[token])) for token in ranked[1:listed])
            logprobs.append(math.log(shares[ranked[0]]))
            ids.append(ranked[0])
        return Completion(0, tuple(ids), logprobs, "stop", others=others)

    def distribution(self, chosen: dict[str, Any], name: str) -> dict[Any, float]:
        """P(value of the field), given the chosen values in front of it."""
        fixed = list(chosen)[: list(chosen).index(name)]
        masses: dict[Any, float] = {}
        for ids, answer in self.answers.items():
            if all(answer[each] == chosen[each] for each in fixed):
                masses[answer[name]] = masses.get(answer[name], 0.0) + self.chance(ids)
        total = sum(masses.values())
        return {value: mass / total for value, mass in masses.items()}


@pytest.fixture(scope="module")
def real_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen.build(tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("vocabulary", ["tiny_base", "real_base"])
@pytest.mark.parametrize("kind", FIELDS)
def test_the_runner_up_is_the_second_of_the_whole_distribution(
    kind: str, vocabulary: str, request: pytest.FixtureRequest
) -> None:
    """And the score the first one's probability, also where a token in front of the value tells null from a text."""
    contract = contract_of(kind)
    renderer = Renderer.load(request.getfixturevalue(vocabulary), contract)
    lane = Lane(adapter_spec("a", None, contract, renderer), contract, renderer)
    known = unknown = 0
    for seed in range(40):
        toy = Toy(contract, renderer, seed)
        row = lane.score(toy.complete(COUNT), "x")
        assert row.answer is not None and row.scores is not None
        for name in ("first", "last"):
            ranked = toy.distribution(row.answer, name)
            rest = {value: mass for value, mass in ranked.items() if value != row.answer[name]}
            assert row.scores[name] == pytest.approx(ranked[row.answer[name]], abs=1e-9), (seed, name)
            if name not in (row.seconds or {}):
                unknown += 1
                continue
            known += 1
            value, mass = (row.seconds or {})[name]
            assert value == max(rest, key=lambda each: rest[each]), (seed, name)
            assert mass == pytest.approx(rest[value], abs=1e-9)
            assert mass + row.scores[name] <= 1 + 1e-9
    assert known
    assert unknown == 0 or kind not in ("true or false", "words"), "each value has a first token of its own"


def test_what_was_not_listed_makes_nothing_up(tiny_base: Path) -> None:
    """With the chosen token and one other: where a third could weigh more, nobody is second."""
    contract = contract_of("words")
    renderer = Renderer.load(tiny_base, contract)
    lane = Lane(adapter_spec("a", None, contract, renderer), contract, renderer)
    for seed in range(40):
        toy = Toy(contract, renderer, seed)
        row = lane.score(toy.complete(2), "x")
        for name, (value, _) in (row.seconds or {}).items():
            rest = toy.distribution(row.answer or {}, name)
            del rest[(row.answer or {})[name]]
            assert value == max(rest, key=lambda each: rest[each])
        alone = lane.score(toy.complete(1)._replace(others=None), "x")
        assert alone.seconds is None and alone._replace(seconds=row.seconds) == row


def test_calibrated_with_the_first_it_is_at_most_one(tiny_bundle: Any) -> None:
    """Calibration moves probability between the chosen value and all others; two values still make one."""
    calibration = tiny_bundle.calibration.__class__(
        {"needs_review": {True: (0.5, 0.5, -0.3), False: (1.4, 1.0, 0.2)}}, threshold=0.5
    )
    answer = tiny_bundle.contract.sample_answers()[0]
    for raw in (0.51, 0.9, 0.999999, 1.0):
        seconds = {"needs_review": (not answer["needs_review"], 1 - raw), "risk": ("high", (1 - raw) / 2)}
        scores = {"needs_review": raw, "risk": raw}
        (made,) = outcomes([ScoredRow(answer, scores, seconds=seconds)], tiny_bundle.contract, calibration)
        assert made.scores is not None and made.scores["needs_review"] != raw
        value, second = made.seconds["needs_review"]
        assert value == (not answer["needs_review"])
        assert second == pytest.approx(1 - made.scores["needs_review"] if raw < 1 else 0, abs=1e-9)
        assert made.seconds["risk"][1] == pytest.approx((1 - raw) / 2)
