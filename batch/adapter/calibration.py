"""Calibrated scores: what `calibration.json` of a bundle says is applied to each answered row.

A field's raw score p is P(value | legal, what came before). Calibrated it is

    p' = sigmoid(a ln p - b ln(1 - p) + c)

Beta calibration (Kull, Silva Filho and Flach 2017) of the chosen value's odds against all others, whose own
shares it does not need. With a = b = 1 / temperature and c = 0 it is temperature scaling (Guo et al. 2017) of
the two classes *this value* and *another*, with a = b Platt's scaling. Each value has its own three numbers,
since a model is overconfident in some labels and not in others (top-label calibration, Gupta and Ramdas
2022). `train/fit/calibrate.py` fits them.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from batch.contract.contract import Contract
from batch.contract.fields import as_text
from batch.errors import AdapterError

EDGE = 1e-7  # about float32's distance from 1: nearer to 0 or 1 a log-probability says no more
Triage = Literal["auto", "human"]
Curve = tuple[float, float, float]  # a, b, c


@dataclasses.dataclass(frozen=True)
class Calibration:
    """``(a, b, c)`` by field and value (a field that is not there stays raw), the least score that needs no
    person, and the share of wrong rows above it that it was chosen for.
    """

    fields: Mapping[str, Mapping[Any, Curve]] = dataclasses.field(default_factory=dict)
    threshold: float | None = None
    target_error: float | None = None

    @classmethod
    def load(cls, path: Path, contract: Contract) -> Self:
        """Read a bundle's `calibration.json`. Raises `AdapterError`."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not content.get("calibrated"):
                return cls()
            names = {field.name: field for field in contract.scored_fields}
            fields = {
                name: {one: _curve(entry[as_text(one)]) for one in names[name].groups}
                for name, entry in content["fields"].items()
            }
            threshold = None if content["threshold"] is None else float(content["threshold"])
            target = None if content.get("target_error") is None else float(content["target_error"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AdapterError(
                f"{path}: is not a calibration ({type(error).__name__}: {error}); calibrate the adapter again"
            ) from error
        if threshold is not None and not 0 <= threshold <= 1:
            raise AdapterError(
                f"{path}: threshold {threshold} is not a probability; calibrate the adapter again"
            )
        return cls(fields, threshold, None if threshold is None else target)

    def apply(
        self, scores: Sequence[Mapping[str, float]], answers: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, float]]:
        """Raw scores of answers' values → calibrated ones; a mapping by field for each answer, all with the
        same fields.
        """
        names = list(scores[0]) if scores else []
        columns = [[each[name] for each in scores] for name in names]
        for index, name in enumerate(names):
            if curves := self.fields.get(name):
                place = {value: at for at, value in enumerate(curves)}
                rows = [place[group(answer[name])] for answer in answers]
                a, b, c = np.array(list(curves.values()))[rows].T
                columns[index] = calibrated(np.array(columns[index]), a, b, c).tolist()
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def triage(self, score: float | None, violations: Sequence[str]) -> Triage:
        """Whether a row needs no person: its score is above the threshold and its answer broke no
        rule.

        `score` is None for an error row. Only for a calibration with a threshold.
        """
        sure = score is not None and self.threshold is not None and score >= self.threshold
        return "auto" if sure and not violations else "human"


def _curve(entry: Mapping[str, Any]) -> Curve:
    a, b, c = (float(entry[name]) for name in "abc")
    if not (0 <= a < math.inf and 0 <= b < math.inf and math.isfinite(c)):
        raise ValueError(f"impossible numbers {a}, {b}, {c}")
    return a, b, c


def group(value: Any) -> Any:
    """What a value's scores are calibrated with: all of that value, and of a set all of as many labels."""
    return len(value) if isinstance(value, tuple) else value


def calibrated(score: Any, a: Any, b: Any, c: Any) -> Any:
    """The formula above, of numbers or of arrays of one shape."""
    score = np.clip(score, EDGE, 1 - EDGE)
    odds = a * np.log(score) - b * np.log1p(-score) + c
    return 1 / (1 + np.exp(-np.maximum(odds, -700.0)))  # below that exp overflows


def product(scores: Mapping[str, float]) -> float:
    """A row's `score`: its fields' probabilities, each given what came before, multiplied."""
    return math.prod(scores.values())
