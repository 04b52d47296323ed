"""Is what goes without a person still as good as was promised? Counted on rows that chance chose.

A threshold keeps its error target on rows like those it was fitted to, with 95 % confidence, so a night's
share of errors above the target is itself a sign that requests have shifted. No score shows that: only people
do.
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from batch.contract.contract import Contract
from batch.errors import InputError
from batch.reporting.prometheus import write_textfile
from train.dataset import Row
from train.decisions import Asked
from train.evaluation.from_scored import check_kinds, read_scored
from train.evaluation.statistics import Proportion

ENOUGH = 20  # audited rows, below which nothing is said of the target


@dataclasses.dataclass(frozen=True)
class Night:
    name: str
    auto: int  # rows that went without a person
    wrong: Proportion  # of those that the audit drew and a person answered


@dataclasses.dataclass(frozen=True)
class Audit:
    nights: Sequence[Night]
    target: float

    @property
    def wrong(self) -> Proportion:
        return sum((night.wrong for night in self.nights), Proportion(0, 0))

    @property
    def holds(self) -> bool | None:
        """Whether the share of wrong rows is within the target; None where too few were audited to say."""
        wrong = self.wrong
        return None if wrong.of < ENOUGH else (wrong.share or 0.0) <= self.target

    @property
    def verdict(self) -> str:
        wrong, (low, high) = self.wrong, self.wrong.interval
        if self.holds is None:
            return (
                f"{wrong.of} audited rows are too few to test a target of {self.target:g}; {ENOUGH} "
                "are needed"
            )
        found = f"{wrong.count} of {wrong.of} audited rows wrong: {wrong.share:.3f} ({low:.3f} to {high:.3f})"
        if self.holds:
            return f"{found}, within the target of {self.target:g}"
        sure = "beyond chance" if low > self.target else "chance alone may explain it"
        return f"{found}, above the target of {self.target:g}; {sure}: label more, then calibrate or improve"

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "holds": self.holds,
            "wrong": self.wrong.as_json(),
            "nights": [{"name": n.name, "auto": n.auto, "wrong": n.wrong.as_json()} for n in self.nights],
        }


def refuse_twice(outputs: Sequence[Path]) -> None:
    """Its rows would count twice. Raises `InputError` for two names of one output."""
    there = [path for path in outputs if os.path.exists(path)]
    for first, second in itertools.combinations(there, 2):
        if os.path.samefile(first, second):
            raise InputError(f"{first} and {second} are one output; name each once")


def audit(
    outputs: Sequence[Path], rows: Sequence[Row], contract: Contract, target: float, **columns: str
) -> Audit:
    """Compare the audit's `rows` with what the `outputs` said on the same ids and texts. Raises
    `InputError`.
    """
    given = {row.asked: row for row in rows}
    return Audit([_night(path, given, contract, **columns) for path in outputs], target)


def _night(
    path: Path,
    given: Mapping[Asked, Row],
    contract: Contract,
    id_column: str = "id",
    text_column: str = "request",
    prefix: str = "",
) -> Night:
    names = [field.name for field in contract.scored_fields]
    wanted = [prefix + name for name in (*names, "triage")]
    table = read_scored(path, id_column, text_column, wanted)
    if missing := [name for name in wanted if name not in table.columns]:
        raise InputError(f"{path}: has no column {missing[0]!r}; give an output with a triage column")
    check_kinds(table, path, (), [prefix + "triage"])
    auto = table.filter(pl.col(prefix + "triage") == "auto")
    lines = auto.filter(pl.col(id_column).is_in([name for name, _ in given])).iter_rows(named=True)
    seen = [(line, given.get((line[id_column], line[text_column]))) for line in lines]
    wrong = [
        any(
            field.read(line[prefix + field.name]) != row.answer[field.name]
            for field in contract.scored_fields
        )
        for line, row in seen
        if row
    ]
    return Night(path.name, auto.height, Proportion(sum(wrong), len(wrong)))


def write_audit(path: Path, found: Audit) -> None:
    """The audit as a Prometheus textfile. Raises `StorageError`."""
    low, high = found.wrong.interval
    values = (
        ("rows", "Rows without a person that the audit drew and a person answered.", found.wrong.of),
        ("wrong_rows", "Of those, the rows that were wrong.", found.wrong.count),
        ("wrong_share_low", "Lower end of the 95 % interval of their share.", low),
        ("wrong_share_high", "Upper end of the 95 % interval of their share.", high),
        ("target_share", "Share of wrong rows that the threshold is to keep.", found.target),
        ("target_holds", "1 within the target, 0 above it, -1 too few rows to say.", _as_number(found.holds)),
    )
    write_textfile(
        path, [(f"batch_route_audit_{name}", meaning, [({}, value)]) for name, meaning, value in values]
    )


def _as_number(holds: bool | None) -> int:
    return -1 if holds is None else int(holds)
