"""Counts over the rows of an output: they travel with its shards and add up to those of the whole."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch.contract.fields import NONE, HasFields, as_text

TALLY = b"batch_route.tally"  # key of a shard's metadata
SCORE_BINS = tuple(f"{index / 100:.2f}" for index in range(100))  # lower edges; the last holds 1.00 as well


@dataclasses.dataclass
class Tally:
    """Counts over rows; they add up, so a resumed run knows of the shards that it did not route."""

    rows: int = 0
    errors: Counter[str] = dataclasses.field(default_factory=Counter)  # error code → rows
    values: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)  # field → value → rows
    violations: Counter[str] = dataclasses.field(default_factory=Counter)  # rule → rows
    score_sum: float = 0.0
    # score column → lower edge of a bin → rows
    scores: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    # `auto`, `human` → rows; empty without a threshold
    triage: Counter[str] = dataclasses.field(default_factory=Counter)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            rows=self.rows + other.rows,
            errors=self.errors + other.errors,
            values=_added(self.values, other.values),
            violations=self.violations + other.violations,
            score_sum=self.score_sum + other.score_sum,
            scores=_added(self.scores, other.scores),
            triage=self.triage + other.triage,
        )

    def as_json(self) -> dict[str, Any]:
        # a Counter is a dict
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` for what is not a tally."""
        return cls(
            rows=int(content["rows"]),
            errors=_counts(content["errors"]),
            values={name: _counts(values) for name, values in content["values"].items()},
            violations=_counts(content["violations"]),
            score_sum=float(content["score_sum"]),
            scores={name: _counts(bins) for name, bins in content.get("scores", {}).items()},
            triage=_counts(content.get("triage", {})),
        )

    @property
    def error_rows(self) -> int:
        return self.errors.total()

    @property
    def error_rate(self) -> float:
        return self.error_rows / self.rows if self.rows else 0.0

    @property
    def mean_score(self) -> float | None:
        answered = self.rows - self.error_rows
        return self.score_sum / answered if answered else None


def _counts(content: Mapping[str, Any]) -> Counter[str]:
    return Counter({name: int(count) for name, count in content.items()})


def _added(left: dict[str, Counter[str]], right: dict[str, Counter[str]]) -> dict[str, Counter[str]]:
    return {name: left.get(name, Counter()) + right.get(name, Counter()) for name in {**left, **right}}


def tally_of(
    table: pa.Table, answers: HasFields, prefix: str, violations: Counter[str], triage: bool = False
) -> Tally:
    """The counts of some rows of an output. `triage`: whether it has that column."""
    return Tally(
        rows=table.num_rows,
        errors=_counted(table[prefix + "error_code"]),
        values={
            field.name: _counted(
                table[prefix + field.name], table[prefix + "error_code"] if field.legal(None) else None
            )
            for field in answers.scored_fields
        },
        violations=violations,
        score_sum=pc.sum(table[prefix + "score"]).as_py() or 0.0,
        scores={
            name: _binned(table[prefix + name])
            for name in (*(f"{field.name}_score" for field in answers.scored_fields), "score")
        },
        triage=_counted(table[prefix + "triage"]) if triage else Counter(),
    )


def with_tally(table: pa.Table, tally: Tally) -> pa.Table:
    """`table` (a shard's rows) with its tally in the schema's metadata."""
    return table.replace_schema_metadata({TALLY: json.dumps(tally.as_json()).encode()})


def shard_tally(shard: Path) -> Tally:
    return Tally.from_json(json.loads(pq.read_schema(shard).metadata[TALLY]))


def _counted(column: pa.ChunkedArray, errors: pa.ChunkedArray | None = None) -> Counter[str]:
    """How often a column holds each value, or a set each label. Empty sets, and with the rows' `errors` the
    nulls of the others, count as none of them."""
    none = 0 if errors is None else column.null_count - (len(errors) - errors.null_count)
    if pa.types.is_list(column.type):
        none += int(pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() or 0)
        column = pc.list_flatten(column)
    counts = ((entry["values"], entry["counts"]) for entry in column.value_counts().to_pylist())
    found = Counter({as_text(value): count for value, count in counts if value is not None})
    return found + Counter({NONE: none})


def _binned(column: pa.ChunkedArray) -> Counter[str]:
    values = column.drop_null().to_numpy()
    counts = np.bincount(
        np.clip((values * len(SCORE_BINS)).astype(int), 0, len(SCORE_BINS) - 1), minlength=len(SCORE_BINS)
    )
    return Counter({name: int(count) for name, count in zip(SCORE_BINS, counts, strict=True) if count})
