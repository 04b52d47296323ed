"""Fit what `calibration.json` says: a calibration curve for each value, and the threshold above which a row
needs no person.

    labelled rows + their answers → beta calibration a value → scores → the least score with a bounded share
    of errors

The curves are fitted on all rows. The threshold, and the evidence for the report (reliability bins, Brier
scores, the risk-coverage curve), are of scores that each row has by curves fitted on the others: a curve
makes the rows it was fitted on look surer than they are, the more so the more values there are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.stats import beta

from batch.adapter.calibration import EDGE, Calibration, Curve, group, product
from batch.contract.contract import Contract
from batch.contract.fields import Field, as_text
from batch.scoring.lane import ScoredRow
from train.dataset import Row

MIN_ROWS = 200  # fewer say too little: ten bins of twenty rows, each known to ±0.2 at best
MIN_OF_VALUE = 50  # answers of a value below which the fit over all values of the field is taken
BINS = 10
FOLDS = 5  # parts of the rows, each scored by curves of the others
CONFIDENCE = 0.95  # that the error target holds above the threshold
# shares of rows kept that are tried for the threshold, in this order
COVERAGES = tuple(share / 20 for share in range(1, 21))
# Places in that order from which they are tried, and each one's share of the doubt. From the surest rows on a
# single wrong one can be too much (of 200 none may be wrong for 2 %), though half of all rows would show it.
STARTS = {0.0: 0.7, 0.5: 0.3}
MIN_KEPT = 200  # rows above a threshold, below which nothing can be said of an error share of a few per cent
STEEPEST = 20.0  # bound of a and b: a perfectly separated set would have no finite fit
CURVE_POINTS = 200

Numbers = np.ndarray  # one-dimensional, float64 or bool


@dataclasses.dataclass(frozen=True)
class Bin:
    """Rows of like score: how many, their mean score, and the share of them that is right."""

    count: int
    score: float
    right: float


def calibrate(
    rows: Sequence[Row], answers: Sequence[ScoredRow], contract: Contract, target_error: float
) -> dict[str, Any]:
    """The content of `calibration.json`, from rows and the raw (uncalibrated) answers to them, in order.

    Where there are too few rows it says so and leaves scores raw. Rows without a valid answer have no score
    and are left out.
    """
    pairs = [(row, answer) for row, answer in zip(rows, answers, strict=True) if answer.answer is not None]
    if len(pairs) < MIN_ROWS:
        return raw(too_few(len(rows), len(pairs)))
    answers = [answer for _, answer in pairs]
    right = {
        f.name: np.array([a.answer[f.name] == row.answer[f.name] for row, a in pairs])  # type: ignore[index]
        for f in contract.scored_fields
    }
    fitted = _fit(contract, answers, right)
    after = _by_others(contract, answers, right)
    fields = {
        name: {
            "raw": describe(np.array([(a.scores or {})[name] for a in answers]), hit),
            "calibrated": describe(np.array([scores[name] for scores in after]), hit),
        }
        for name, hit in right.items()
    }
    score, all_right = np.array([product(scores) for scores in after]), np.all(list(right.values()), axis=0)
    # an answer that breaks a rule goes to a person anyway
    sure = np.array([not answer.violations for answer in answers])
    chosen = choose_threshold(score[sure], all_right[sure], target_error)
    return {
        "calibrated": True,
        "method": "sigmoid(a ln p - b ln(1 - p) + c) for each value, Kull et al. 2017",
        "fields": {
            name: {as_text(value): dict(zip("abc", curve, strict=True)) for value, curve in values.items()}
            for name, values in fitted.items()
        },
        "target_error": target_error,
        "threshold": chosen and chosen[0],
        "why": _why(chosen, len(pairs), target_error),
        "rows": len(pairs),
        "evidence": {
            "fields": fields,
            "score": describe(score, all_right),
            "kept": chosen[1] if chosen else 0,  # rows that need no person
            "risk_coverage": risk_coverage(np.where(sure, score, 0.0), all_right),
        },
    }


def too_few(rows: int, answered: int) -> str:
    """Why these do not do, of which so many have a valid answer."""
    if rows < MIN_ROWS:
        return f"{rows} labelled rows are too few to calibrate on, {MIN_ROWS} are needed"
    return f"{answered} of {rows} labelled rows have a valid answer, {MIN_ROWS} are needed to calibrate on"


def raw(why: str) -> dict[str, Any]:
    """The content of a `calibration.json` that leaves scores as they are."""
    return {"calibrated": False, "why": why}


def _fit(
    contract: Contract, answers: Sequence[ScoredRow], right: Mapping[str, Numbers]
) -> dict[str, dict[Any, Curve]]:
    return {field.name: _fit_field(field, answers, right[field.name]) for field in contract.scored_fields}


def _by_others(
    contract: Contract, answers: Sequence[ScoredRow], right: Mapping[str, Numbers]
) -> list[dict[str, float]]:
    """Each answer's calibrated scores, by curves that were fitted without its fold of the rows."""
    after: list[dict[str, float]] = [{} for _ in answers]
    fold: Numbers = np.arange(len(answers)) % FOLDS
    for own in range(FOLDS):
        others = np.flatnonzero(fold != own)
        learnt = {name: hit[others] for name, hit in right.items()}
        curves = Calibration(_fit(contract, [answers[place] for place in others], learnt))
        places = np.flatnonzero(fold == own)
        some = [answers[place] for place in places]
        scores = curves.apply([each.scores or {} for each in some], [each.answer or {} for each in some])
        for place, score in zip(places, scores, strict=True):
            after[place] = score
    return after


def _fit_field(field: Field, answers: Sequence[ScoredRow], right: Numbers) -> dict[Any, Curve]:
    """The curve of each value, that of the whole field for a value that was answered too seldom."""
    scores = np.array([(answer.scores or {})[field.name] for answer in answers])
    groups = np.array([field.groups.index(group((answer.answer or {})[field.name])) for answer in answers])
    pooled = fit_beta(scores, right)
    fitted = {}
    for index, one in enumerate(field.groups):
        own = groups == index
        fitted[one] = fit_beta(scores[own], right[own]) if own.sum() >= MIN_OF_VALUE else pooled
    return fitted


def fit_beta(scores: Numbers, right: Numbers) -> Curve:
    """The a, b ≥ 0 and c that minimise the log loss (Kull et al. 2017), with smoothed targets against
    overconfidence (Platt 1999).
    """
    clipped = np.clip(scores, EDGE, 1 - EDGE)
    features = np.stack([np.log(clipped), -np.log1p(-clipped), np.ones(len(scores))], axis=1)
    yes, no = int(right.sum()), int((~right).sum())
    targets = np.where(right, (yes + 1) / (yes + 2), 1 / (no + 2))

    def loss(numbers: Numbers) -> tuple[float, Numbers]:
        odds = features @ numbers
        gap = 1 / (1 + np.exp(-np.clip(odds, -700, 700))) - targets
        return float(np.mean(np.logaddexp(0, odds) - targets * odds)), features.T @ gap / len(scores)

    bounds = [(0, STEEPEST), (0, STEEPEST), (-50, 50)]
    a, b, c = minimize(loss, np.array([1.0, 1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds).x
    return _short(a), _short(b), _short(c)


def describe(scores: Numbers, right: Numbers) -> dict[str, Any]:
    """Brier score (Brier 1950), adaptive ECE and the bins of the reliability curve, as JSON."""
    bins = reliability(scores, right)
    return {
        "brier": float(np.mean((scores - right) ** 2)),
        "ece": adaptive_ece(bins),
        "bins": [dataclasses.asdict(each) for each in bins],
    }


def reliability(scores: Numbers, right: Numbers, bins: int = BINS) -> list[Bin]:
    """Bins of equal mass, in order of score (adaptive binning: Nguyen & O'Connor 2015)."""
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [Bin(len(part), float(scores[part].mean()), float(right[part].mean())) for part in parts]


def adaptive_ece(bins: Sequence[Bin]) -> float:
    """Mean distance between score and share of right ones over bins of equal mass (Nixon et al. 2019)."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.score - each.right) for each in bins) / total


def risk_coverage(scores: Numbers, right: Numbers) -> list[tuple[float, float]]:
    """Share of rows kept, by falling score, and the share of errors among them (El-Yaniv & Wiener 2010); a
    few hundred points.
    """
    wrong = np.cumsum(~right[np.argsort(-scores, kind="stable")])
    kept = np.unique(np.linspace(1, len(scores), min(CURVE_POINTS, len(scores))).round().astype(int))
    return [(float(n / len(scores)), float(wrong[n - 1] / n)) for n in kept]


def choose_threshold(
    scores: Numbers, right: Numbers, target_error: float
) -> tuple[float, int, int, float] | None:
    """The least score such that, with 95 % confidence, at most `target_error` of the rows at or above it are
    wrong.

    Returns it with the number of rows at or above it, how many of them are wrong, and the bound; None where
    none will do. Fixed sequence testing (Learn then Test, Angelopoulos et al. 2021): coverages are tried in
    an order set beforehand, each against Clopper & Pearson's bound, up to the first that fails, so that one
    confidence serves them all; each of the `STARTS` has its share of the doubt.
    """
    order, best = np.sort(scores)[::-1], None
    tried = [kept for kept in (int(coverage * len(order)) for coverage in COVERAGES) if kept >= MIN_KEPT]
    for start, share in STARTS.items():
        for kept in tried[int(start * len(tried)) :]:
            threshold = _floor(order[kept - 1])
            above = scores >= threshold
            count, wrong = int(above.sum()), int((~right[above]).sum())
            bound = upper_bound(wrong, count, (1 - CONFIDENCE) * share)
            if bound > target_error:
                break
            if best is None or threshold < best[0]:
                best = (threshold, count, wrong, bound)
    return best


def upper_bound(wrong: int, of: int, doubt: float) -> float:
    """Clopper & Pearson's (1934) exact upper confidence bound of a share, at confidence 1 - `doubt`."""
    return 1.0 if wrong >= of else float(beta.ppf(1 - doubt, wrong + 1, of - wrong))


def _why(chosen: tuple[float, int, int, float] | None, rows: int, target: float) -> str:
    if chosen is None:
        return (
            f"of no score do {rows} rows show with 95 % confidence that the errors above it stay under "
            f"{target:g}: every row needs a person; calibrate on more rows, or allow more errors"
        )
    threshold, count, wrong, bound = chosen
    return (
        f"of {rows} rows {count} score {threshold:g} or more, {wrong} of them wrong: at most "
        f"{bound:.4f} with 95 % confidence"
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _floor(value: float) -> float:
    """Six decimals, rounded down, so that float32's rounding in a file does not move a row across the
    threshold.
    """
    return float(np.floor(value * 1e6) / 1e6)
