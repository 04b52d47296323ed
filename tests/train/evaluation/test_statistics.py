"""Intervals, paired tests and F1 against published or independently computed values."""

import itertools
import math
from collections import Counter

import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from train.evaluation.statistics import McNemar, Proportion, log_odds, macro_f1


@pytest.mark.parametrize(  # Newcombe 1998, table I, and the operating model's 4 of 4
    ("right", "of", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (4, 4, 0.5101, 1),
        (0, 0, 0, 1),
    ],
)
def test_wilson_interval(right: int, of: int, low: float, high: float) -> None:
    assert Proportion(right, of).interval == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 0), (6, 0), (0, 5), (12, 4), (7, 7)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert McNemar(first, second, 40).p == pytest.approx(expected)


def test_four_cases_are_too_few_and_it_says_how_many_would_tell() -> None:
    test = McNemar(1, 0, 4)
    assert not test.distinguishable and test.better is None
    assert test.verdict == f"not significant; about {test.cases_to_tell} such cases would tell"
    assert 24 <= (test.cases_to_tell or 0) <= 40  # six discordant cases of one in four are needed at least
    assert McNemar(8, 0, 40).verdict == "the first is better" and McNemar(0, 8, 40).better == 2
    assert McNemar(0, 0, 40).cases_to_tell is None and "same cases" in McNemar(0, 0, 40).verdict
    assert McNemar(2, 2, 40).cases_to_tell is None and "as many one way" in McNemar(2, 2, 40).verdict


@pytest.mark.parametrize(("first", "second", "of"), [(8, 3, 60), (5, 1, 20)])
def test_the_number_of_cases_has_the_power_it_claims(first: int, second: int, of: int) -> None:
    """The exact power at that number, summed over how many cases are discordant and which way."""
    n = McNemar(first, second, of).cases_to_tell
    assert n is not None
    discordant, share, power = (first + second) / of, first / (first + second), 0.0
    for d in range(n + 1):
        if (chance := math.comb(n, d) * discordant**d * (1 - discordant) ** (n - d)) < 1e-6:
            continue
        power += chance * sum(
            math.comb(d, k) * share**k * (1 - share) ** (d - k)
            for k in range(d + 1)
            if McNemar(k, d - k, n).distinguishable
        )
    assert 0.7 < power < 0.9  # the formula is asymptotic, the test exact


def test_macro_f1_is_scikit_learns() -> None:
    gold = ["a", "a", "b", "c", "c", "c", "a", "b"]
    answered = ["a", "b", "b", "c", "a", "c", "a", "d"]
    expected = f1_score(gold, answered, average="macro", zero_division=0)
    assert macro_f1(Counter(zip(gold, answered, strict=True))) == pytest.approx(expected)
    # no answer is a miss and no value
    assert macro_f1({("a", None): 1, ("a", "a"): 1}) == pytest.approx(2 / 3)


def test_log_odds_find_the_words_of_a_side() -> None:
    inside = Counter({"updates": 8, "the": 20, "agent": 6})
    outside = Counter({"reads": 9, "the": 21, "agent": 5})
    scores = log_odds(inside, outside)
    assert scores["updates"] > 1 > abs(scores["the"]) and scores["reads"] < -1
    assert log_odds(outside, inside)["updates"] == pytest.approx(-scores["updates"])
    assert log_odds({}, outside) == {}


def test_proportions_add_up() -> None:
    parts = itertools.accumulate([Proportion(1, 2), Proportion(2, 2)])
    assert list(parts)[-1] == Proportion(3, 4) and Proportion(0, 0).share is None
