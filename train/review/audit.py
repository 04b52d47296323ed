"""Is what goes without a person still as good as was promised? Counted on rows that chance chose.

A threshold keeps its error target on rows like those it was fitted to, with 95 % confidence, so a night's
share of errors above the target is itself a sign that requests have shifted. No score shows that: only people
do.
"""

import dataclasses
import itertools
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from batch.contract.contract import Contract
from batch.errors import InputError
from batch.reporting.prometheus import write_textfile
from train.dataset import Row
from train.decisions import Asked, Decision, standing
from train.evaluation.from_scored import check_kinds, read_scored
from train.evaluation.statistics import Proportion
from train.review.queue import audited
from train.review.serve import columns_of, seed_of

ENOUGH = 20  # audited rows, below which nothing is said of the target


@dataclasses.dataclass(frozen=True)
class Night:
    name: str
    auto: int  # rows that went without a person
    wrong: Proportion  # of those that the audit drew and a person answered
    unsure: int = 0  # of those that it drew, rows that were left unsure or skipped
    open: int = 0  # and rows that nobody got to

    def __str__(self) -> str:
        told = f"{self.name}: {self.auto} auto rows, {self.wrong.count} of {self.wrong.of} audited wrong"
        return told + (f", {self.unsure} unsure or skipped, {self.open} open" * bool(self.unsure + self.open))


@dataclasses.dataclass(frozen=True)
class Audit:
    nights: Sequence[Night]
    target: float

    @property
    def wrong(self) -> Proportion:
        return sum((night.wrong for night in self.nights), Proportion(0, 0))

    @property
    def unsure(self) -> int:
        return sum(night.unsure for night in self.nights)

    @property
    def open(self) -> int:
        return sum(night.open for night in self.nights)

    @property
    def worst(self) -> Proportion:
        """As if all rows that people left unsure were wrong: those are the hard ones. Rows that nobody got to
        are not, since the order is of chance.
        """
        return self.wrong + Proportion(self.unsure, self.unsure)

    @property
    def holds(self) -> bool | None:
        """Whether the share of wrong rows is within the target; None where too few were decided to say."""
        if self.wrong.of < ENOUGH:
            return None
        if (self.wrong.share or 0.0) > self.target:
            return False
        return True if (self.worst.share or 0.0) <= self.target else None

    @property
    def verdict(self) -> str:
        wrong, (low, high) = self.wrong, self.wrong.interval
        if wrong.of < ENOUGH:
            return (
                f"{wrong.of} audited rows are too few to test a target of {self.target:g}; {ENOUGH} "
                f"are needed{self._left}"
            )
        found = f"{wrong.count} of {wrong.of} audited rows wrong: {wrong.share:.3f} ({low:.3f} to {high:.3f})"
        if self.holds is None:
            return f"{found}{self._left}, so the target of {self.target:g} is not tested; decide those too"
        if self.holds:
            return f"{found}, within the target of {self.target:g}{self._left}"
        sure = "beyond chance" if low > self.target else "chance alone may explain it"
        return (
            f"{found}, above the target of {self.target:g}; {sure}: label more, then calibrate or improve"
            f"{self._left}"
        )

    @property
    def _left(self) -> str:
        told = f"; {self.open} more drawn are open" * bool(self.open)
        if not self.unsure:
            return told
        return f"; {self.unsure} unsure or skipped: {self.worst.share:.3f} if all of them were wrong{told}"


def refuse_twice(outputs: Sequence[Path]) -> None:
    """Its rows would count twice. Raises `InputError` for two names of one output."""
    there = [path for path in outputs if os.path.exists(path)]
    for first, second in itertools.combinations(there, 2):
        if os.path.samefile(first, second):
            raise InputError(f"{first} and {second} are one output; name each once")


def audit(
    outputs: Sequence[Path],
    rows: Sequence[Row],
    files: Sequence[Sequence[Decision]],
    contract: Contract,
    target: float,
    id_column: str = "id",
    text_column: str | None = None,
    prefix: str = "",
) -> Audit:
    """Compare the labelled `rows` that the audit drew with what the `outputs` said on the same ids and texts.
    `files` hold the lines that the rows are from. Raises `InputError`.

    A row counts for the output that it was drawn from: another night's may be the work of an adapter that was
    trained on it. What people have decided otherwise is not drawn.
    """
    given, marks = {row.asked: row for row in rows}, _Marks(files)
    nights = [
        _night(path, given, marks, contract, *columns_of(path, id_column, text_column), prefix)
        for path in outputs
    ]
    return Audit(nights, target)


class _Marks:
    """What reviewers' lines say of the audit: from which runs a row was drawn, and what share."""

    def __init__(self, files: Sequence[Sequence[Decision]]) -> None:
        self._runs: dict[Asked, set[str]] = defaultdict(set)
        self._adapters: dict[Asked, set[Any]] = defaultdict(set)  # in lines of an earlier version: no run
        self.share: dict[str, float] = {}  # last asked for
        lines = itertools.chain.from_iterable(files)
        for each in sorted(lines, key=lambda line: str(line.content.get("reviewed_at"))):
            match each.content.get("audit"):
                case {"run": str(run), "share": int() | float() as share}:
                    self._runs[each.asked].add(run)
                    self.share[run] = share
                case True:
                    self._adapters[each.asked].add(each.content.get("adapter"))
        found = [standing(decisions) for decisions in files]
        self.unsure = {asked for each in found for (asked, _), one in each.items() if one.kind != "label"}
        self.drawn = {name for name, _ in (*self._runs, *self._adapters)}

    def taken(self, asked: Asked, run: str, adapter: str | None) -> bool:
        """Whether the audit of the run drew the row, which that adapter answered. A line of an earlier
        version counts for one output only.
        """
        if run in self._runs.get(asked, ()):
            return True
        return adapter in self._adapters.get(asked, ()) and bool(self._adapters.pop(asked))


def _night(
    path: Path,
    given: Mapping[Asked, Row],
    marks: _Marks,
    contract: Contract,
    id_column: str,
    text_column: str,
    prefix: str,
) -> Night:
    names = [field.name for field in contract.scored_fields]
    wanted = [prefix + name for name in (*names, "triage")]
    table = read_scored(path, id_column, text_column, [*wanted, prefix + "adapter"])
    if missing := [name for name in wanted if name not in table.columns]:
        raise InputError(f"{path}: has no column {missing[0]!r}; give an output with a triage column")
    check_kinds(table, path, (), [prefix + "triage", prefix + "adapter"])
    auto, run = table.filter(pl.col(prefix + "triage") == "auto"), seed_of(path)
    asked_for = {name for name in auto[id_column] if audited(run, name, marks.share.get(run, 0.0))}
    wrong = answered = unsure = unread = 0
    for line in auto.filter(pl.col(id_column).is_in(list(asked_for | marks.drawn))).iter_rows(named=True):
        asked = line[id_column], line[text_column]
        drew = marks.taken(asked, run, line.get(prefix + "adapter"))
        if drew and (row := given.get(asked)):
            answered += 1
            wrong += any(
                field.read(line[prefix + field.name]) != row.answer[field.name]
                for field in contract.scored_fields
            )
        elif drew and asked in marks.unsure:
            unsure += 1
        elif asked not in given and asked not in marks.unsure:
            unread += line[id_column] in asked_for
    return Night(path.name, auto.height, Proportion(wrong, answered), unsure, unread)


def write_audit(path: Path, found: Audit) -> None:
    """The audit as a Prometheus textfile. Raises `StorageError`."""
    low, high = found.wrong.interval
    values = (
        ("rows", "Rows without a person that the audit drew and a person answered.", found.wrong.of),
        ("wrong_rows", "Of those, the rows that were wrong.", found.wrong.count),
        ("undecided_rows", "Rows that it drew and people left unsure or skipped.", found.unsure),
        ("wrong_share_low", "Lower end of the 95 % interval of their share.", low),
        ("wrong_share_high", "Upper end of the 95 % interval of their share.", high),
        ("target_share", "Share of wrong rows that the threshold is to keep.", found.target),
        (
            "target_holds",
            "1 within the target, 0 above it, -1 too few answers to say.",
            _as_number(found.holds),
        ),
    )
    write_textfile(
        path, [(f"batch_route_audit_{name}", meaning, [({}, value)]) for name, meaning, value in values]
    )


def _as_number(holds: bool | None) -> int:
    return -1 if holds is None else int(holds)
