"""Calibrated scores: what `calibration.json` of a bundle says is applied to each answered row.

A field's raw score p is P(value | legal, what came before). Calibrated it is

    p' = sigmoid(logit(p) / temperature + bias)

Platt's scaling (Platt 1999) of the chosen value's log-odds against all others, whose own shares it does not need; with
bias 0 it is temperature scaling (Guo et al. 2017) of the two classes *this value* and *another*. Each value has its own
pair, since a model is overconfident in some labels and not in others (top-label calibration, Gupta & Ramdas 2022).
`train/calibrate.py` fits them.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from batch.contract import Contract
from batch.errors import AdapterError

EDGE = 1e-7  # about float32's distance from 1: nearer to 0 or 1 a log-probability says no more
Triage = Literal["auto", "human"]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """``(temperature, bias)`` by field and value (a field that is not there stays raw), and the least score that needs no person."""

    fields: Mapping[str, Mapping[Any, tuple[float, float]]] = dataclasses.field(default_factory=dict)
    threshold: float | None = None

    @classmethod
    def load(cls, path: Path, contract: Contract) -> Self:
        """Read a bundle's `calibration.json`. Raises `AdapterError`."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not content.get("calibrated"):
                return cls()
            names = {field.name: field for field in contract.scored_fields}
            fields = {name: {value: _pair(entry[key(value)]) for value in names[name].values} for name, entry in content["fields"].items()}
            threshold = None if content["threshold"] is None else float(content["threshold"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterError(f"{path}: is no calibration ({type(error).__name__}: {error}); calibrate the adapter again") from error
        if threshold is not None and not 0 <= threshold <= 1:
            raise AdapterError(f"{path}: threshold {threshold} is no probability; calibrate the adapter again")
        return cls(fields, threshold)

    def apply(self, scores: Mapping[str, float], answer: Mapping[str, Any]) -> dict[str, float]:
        """Raw scores of an answer's values, by field → calibrated ones."""
        return {
            name: calibrated(score, *self.fields[name][answer[name]]) if name in self.fields else score for name, score in scores.items()
        }

    def triage(self, score: float | None, violations: Sequence[str]) -> Triage:
        """Whether a row can do without a person: its score is above the threshold and its answer broke no rule.

        `score` is None for an error row. Only for a calibration with a threshold.
        """
        sure = score is not None and self.threshold is not None and score >= self.threshold
        return "auto" if sure and not violations else "human"


def key(value: Any) -> str:
    """A value as JSON's objects name it."""
    return value if isinstance(value, str) else json.dumps(value)


def _pair(entry: Mapping[str, Any]) -> tuple[float, float]:
    temperature, bias = float(entry["temperature"]), float(entry["bias"])
    if not 0 < temperature < math.inf or not math.isfinite(bias):
        raise ValueError(f"impossible temperature {temperature} or bias {bias}")
    return temperature, bias


def calibrated(score: float, temperature: float, bias: float) -> float:
    score = min(max(score, EDGE), 1 - EDGE)
    odds = (math.log(score) - math.log1p(-score)) / temperature + bias
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


def product(scores: Mapping[str, float]) -> float:
    """A row's `score`: its fields' probabilities, each given what came before, multiplied."""
    return math.prod(scores.values())
