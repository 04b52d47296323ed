"""The request generator: determinism, whole families held out, facts that the text carries."""

import collections
import itertools
import random
import re

import pytest

from batch.contract.contract import Contract
from train.mini_base.requests import (
    HELD_OUT,
    SHARED_LISTS,
    SPLITS,
    Facts,
    Request,
    Split,
    compose,
    families,
    phrase_book,
    requests,
)
from train.mini_base.wording import inflect, typo


def take(count: int, seed: int = 3, split: Split | None = None) -> list[Request]:
    return list(itertools.islice(requests(random.Random(seed), split), count))


def test_the_same_seed_gives_the_same_requests() -> None:
    assert take(100) == take(100)
    assert take(100) != take(100, seed=4)


def test_families_of_the_splits_are_disjoint_and_cover_the_phrase_book() -> None:
    book = phrase_book()
    for table in HELD_OUT:
        for name, phrases in book[table].items():
            parts = [set(families(table, name, split)) for split in SPLITS]
            if name in SHARED_LISTS:
                continue
            assert all(parts), name
            assert set().union(*parts) == set(phrases), name
            assert sum(map(len, parts)) == len(set(phrases)), name


def test_held_out_requests_have_families_that_training_never_sees() -> None:
    seen = {request.family for request in take(3000, split="train")}
    for split in ("validation", "test"):
        held_out = {request.family for request in take(500, split=split)}
        assert len(held_out) > 50
        assert not held_out & seen


def test_there_are_hundreds_of_families() -> None:
    assert sum(len(phrases) for table in HELD_OUT for phrases in phrase_book()[table].values()) > 400


def test_facts_are_spread_over_the_whole_policy_table(contract: Contract) -> None:
    rows = take(3000)
    decided = collections.Counter(str(sorted(contract.decide(row.facts.as_dict()).items())) for row in rows)
    cells = itertools.product(*contract.facts.values())
    every = (dict(zip(contract.facts, values, strict=True)) for values in cells)
    assert set(decided) == {str(sorted(contract.decide(facts).items())) for facts in every}
    assert min(decided.values()) > 40
    needs = collections.Counter(row.facts.need for row in rows)
    assert all(count > 600 for count in needs.values())


@pytest.mark.parametrize(
    "system, names",
    [("Salesforce", r"salesforce|sfdc|sales cloud|service cloud"), ("ServiceNow", r"servicenow|snow")],
)
@pytest.mark.parametrize("writes", [True, False])
def test_a_build_names_its_system(system: str, names: str, writes: bool) -> None:
    rng = random.Random(5)
    for _ in range(200):
        request = compose(Facts("build", writes=writes, system=system), rng)
        # A typo may have hit the name itself.
        assert re.search(names, request.text, re.I) or _nearly(request.text, names), request.text


def _nearly(text: str, names: str) -> bool:
    import difflib

    words = re.findall(r"\w+", text.lower())
    return any(difflib.get_close_matches(name, words, n=1, cutoff=0.7) for name in names.split("|"))


def test_requests_without_noise_and_slots_are_filled() -> None:
    for request in take(2000):
        assert not re.search(r"[{}^]", request.text), request.text
        assert 3 <= len(request.text) < 1500


def test_texts_hardly_repeat() -> None:
    texts = [request.text for request in take(2000)]
    assert len(set(texts)) > 1950


@pytest.mark.parametrize(
    "phrase, form, expected",
    [
        ("^query it and ^build a view", "vp", "query it and build a view"),
        ("^query it and ^build a view", "vps", "queries it and builds a view"),
        ("^summarise it", "ving", "summarising it"),
        ("^plot it", "ving", "plotting it"),
        ("^watch it", "vps", "watches it"),
        ("^have an agent", "vps", "has an agent"),
    ],
)
def test_inflection(phrase: str, form: str, expected: str) -> None:
    assert inflect(phrase, form) == expected


def test_a_typo_changes_one_word_only() -> None:
    rng = random.Random(1)
    for _ in range(50):
        before = "please summarise the minutes"
        pairs = zip(before.split(), typo(before, rng).split(), strict=True)
        assert sum(a != b for a, b in pairs) <= 1
    assert typo("a b", rng) == "a b"
