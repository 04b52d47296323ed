"""How far two reviewers agree, and the requests on which they do not."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score

from batch.contract.contract import Contract
from batch.errors import DatasetError
from train.dataset import Row

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of one field. `kappa` is Cohen's (1960), with a 95 % percentile bootstrap interval (Efron 1979); None
    where both used one and the same value throughout, so that chance alone agrees too.
    """

    field: str
    same: int
    of: int
    kappa: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        share = f"{self.field}: {self.same} of {self.of} the same"
        if self.kappa is None:
            return f"{share}, kappa undefined: only one value was used"
        return f"{share}, kappa {self.kappa:.2f}, {self.low:.2f} to {self.high:.2f}"


def agreement(
    first: Sequence[Row], second: Sequence[Row], contract: Contract
) -> tuple[list[Agreement], list[Mapping[str, Any]]]:
    """A line for each scored field over the requests that both decided, and the disagreements: `id`,
    `request`, and both values of each field that differs. Raises `DatasetError` where there is no such
    request.
    """
    others = {row.asked: row for row in second}
    pairs = [(row, others[row.asked]) for row in first if row.asked in others]
    if not pairs:
        raise DatasetError("the two files have no request in common; give a second reading (--overlap)")
    names = [field.name for field in contract.scored_fields]
    lines = [
        _agreement(name, [(repr(a.answer[name]), repr(b.answer[name])) for a, b in pairs]) for name in names
    ]
    differing: list[Mapping[str, Any]] = [
        {
            "id": a.id,
            "request": a.request,
            "labels": {n: [a.answer[n], b.answer[n]] for n in names if a.answer[n] != b.answer[n]},
        }
        for a, b in pairs
        if any(a.answer[name] != b.answer[name] for name in names)
    ]
    return lines, differing


def _agreement(name: str, pairs: Sequence[tuple[str, str]]) -> Agreement:
    values = np.array(pairs)
    same = int((values[:, 0] == values[:, 1]).sum())
    if len(np.unique(values)) < 2:
        return Agreement(name, same, len(pairs), None, None, None)
    draws = np.random.default_rng(0).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    drawn = [_kappa(values[rows]) for rows in draws]
    low, high = (float(np.nanquantile(drawn, edge)) for edge in (0.025, 0.975))
    return Agreement(name, same, len(pairs), _kappa(values), low, high)


def _kappa(values: Any) -> float:
    if len(np.unique(values)) < 2:
        return float("nan")  # a resample of one value says nothing about agreement beyond chance
    return float(cohen_kappa_score(values[:, 0], values[:, 1]))
