"""Counts into statements: intervals, paired tests, F1. Pure functions of numbers; a formula that no library
has names its source.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from scipy.stats import binomtest, norm
from sklearn.metrics import f1_score

TWO_SIDED_95 = float(norm.ppf(0.975))
POWER_80 = float(norm.ppf(0.8))  # the power that a sample size is computed for
ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class Proportion:
    """`count` of `of`, with its 95 % Wilson score interval (Wilson 1927)."""

    count: int
    of: int

    @property
    def share(self) -> float | None:
        return self.count / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        if self.of == 0:
            return 0.0, 1.0
        found = binomtest(self.count, self.of).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def __add__(self, other: "Proportion") -> "Proportion":
        return Proportion(self.count + other.count, self.of + other.of)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count}/{self.of}  {low:.2f} to {high:.2f}"

    def as_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {"count": self.count, "of": self.of, "share": self.share, "low": low, "high": high}


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Two judges of the same `of` cases: `first` only the first got right, `second` only the second (McNemar
    1947).
    """

    first: int
    second: int
    of: int

    @property
    def p(self) -> float:
        """Two-sided exact p: the discordant cases are tosses of a fair coin if the two are equally good."""
        discordant = self.first + self.second
        return float(binomtest(self.first, discordant).pvalue) if discordant else 1.0

    @property
    def distinguishable(self) -> bool:
        return self.p < ALPHA

    @property
    def better(self) -> int | None:
        """1 or 2, the better of the two, or None where they are not distinguishable."""
        return (1 if self.first > self.second else 2) if self.distinguishable else None

    @property
    def cases_to_tell(self) -> int | None:
        """Cases at which a difference like the one seen is found with a power of 0.8 (Connor 1987, formula
        3).

        None where no difference was seen: then no number of such cases would tell.
        """
        if self.first == self.second:
            return None
        discordant = (self.first + self.second) / self.of
        difference = abs(self.first - self.second) / self.of
        root = TWO_SIDED_95 * math.sqrt(discordant) + POWER_80 * math.sqrt(
            max(0.0, discordant - difference**2)
        )
        # under 6 discordant ones p is over 0.05
        return max(math.ceil((root / difference) ** 2), math.ceil(6 / discordant))

    @property
    def verdict(self) -> str:
        if self.first + self.second == 0:
            return "not significant: right and wrong on the same cases"
        if self.distinguishable:
            return f"the {'first' if self.better == 1 else 'second'} is better"
        if self.cases_to_tell is None:
            return "not significant: as many one way as the other"
        return f"not significant; about {self.cases_to_tell} such cases would tell"

    def as_json(self) -> dict[str, Any]:
        counts = {"only_first_right": self.first, "only_second_right": self.second, "of": self.of}
        return {**counts, "p": self.p, "cases_to_tell": self.cases_to_tell, "verdict": self.verdict}


def macro_f1(confusion: Mapping[tuple[str, str | None], int]) -> float:
    """Mean of the values' F1 over every value that was given or answered.

    `confusion` counts (gold, answered) pairs; None stands for no answer, which is a miss and no value of its
    own.
    """
    values = sorted({value for pair in confusion for value in pair if value is not None})
    if not values:
        return 0.0
    none = "\0"  # stands for no answer, among values that are texts
    gold, answered = ([none if pair[i] is None else pair[i] for pair in confusion] for i in (0, 1))
    counts = list(confusion.values())
    return float(f1_score(gold, answered, labels=values, average="macro", sample_weight=counts))


def macro_f1_of_sets(confusion: Mapping[tuple[str, str | None], int]) -> float:
    """The same of sets, as JSON has them: the mean over every label of the F1 of *the set holds it*."""
    pairs = [
        (set(json.loads(gold)), set(json.loads(answered or "[]")), count)
        for (gold, answered), count in confusion.items()
    ]
    scores = []
    for label in {label for gold, answered, _ in pairs for label in gold | answered}:
        both = sum(count for gold, answered, count in pairs if label in gold and label in answered)
        either = sum(count * ((label in gold) + (label in answered)) for gold, answered, count in pairs)
        scores.append(2 * both / either)
    return sum(scores) / len(scores) if scores else 0.0


def log_odds(inside: Mapping[str, int], outside: Mapping[str, int]) -> dict[str, float]:
    """How much more each word belongs to `inside` than to `outside`, as a z-score.

    Weighted log-odds ratio with an informative Dirichlet prior, the two sides' pooled counts scaled to their
    smaller size (Monroe, Colaresi and Quinn 2008, "Fightin' Words", equations 16, 19 and 22).
    """
    n_in, n_out = sum(inside.values()), sum(outside.values())
    pooled = {word: inside.get(word, 0) + outside.get(word, 0) for word in {*inside, *outside}}
    total = n_in + n_out
    if not n_in or not n_out:
        return {}
    strength = max(1.0, min(n_in, n_out)) / total
    scores = {}
    for word, count in pooled.items():
        prior, size = strength * count, strength * total
        a, b = inside.get(word, 0) + prior, outside.get(word, 0) + prior
        rest_a, rest_b = n_in + size - a, n_out + size - b
        if rest_a > 0 and rest_b > 0:
            scores[word] = (math.log(a / rest_a) - math.log(b / rest_b)) / math.sqrt(1 / a + 1 / b)
    return scores
