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

import polars as pl

from batch.contract.contract import Contract
from batch.errors import InputError
from batch.reporting.prometheus import write_textfile
from train.dataset import Row
from train.decisions import Asked, Decision, standing
from train.evaluation.from_scored import check_kinds, read_scored
from train.evaluation.statistics import Proportion
from train.review.queue import audited
from train.review.serve import seed_of

ENOUGH = 20  # audited rows, below which nothing is said of the target
OLD = "an output that the line does not name"  # the run in a line of an earlier version


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
    def undecided(self) -> int:
        return sum(night.unsure + night.open for night in self.nights)

    @property
    def worst(self) -> Proportion:
        """As if all undecided rows were wrong: those that people cannot decide are the hard ones."""
        return self.wrong + Proportion(self.undecided, self.undecided)

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
                f"are needed{self._undecided}"
            )
        found = f"{wrong.count} of {wrong.of} audited rows wrong: {wrong.share:.3f} ({low:.3f} to {high:.3f})"
        if self.holds is None:
            return (
                f"{found}{self._undecided}, so the target of {self.target:g} is not tested; decide those too"
            )
        if self.holds:
            return f"{found}, within the target of {self.target:g}{self._undecided}"
        sure = "beyond chance" if low > self.target else "chance alone may explain it"
        return (
            f"{found}, above the target of {self.target:g}; {sure}: label more, then calibrate or improve"
            f"{self._undecided}"
        )

    @property
    def _undecided(self) -> str:
        if not self.undecided:
            return ""
        unsure = sum(night.unsure for night in self.nights)
        return (
            f"; of {self.worst.of} drawn, {self.wrong.of} answered, {unsure} unsure or skipped, "
            f"{self.undecided - unsure} open: {self.worst.share:.3f} if all of those were wrong"
        )


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
    **columns: str,
) -> Audit:
    """Compare the labelled `rows` that the audit drew with what the `outputs` said on the same ids and texts.
    `files` hold the lines that the rows are from. Raises `InputError`.

    A row counts for the output that it was drawn from: another night's may be the work of an adapter that was
    trained on it. What people have decided otherwise is not drawn.
    """
    given = {row.asked: row for row in rows}
    marks = _Marks(files)
    return Audit([_night(path, given, marks, contract, **columns) for path in outputs], target)


class _Marks:
    """What reviewers' lines say of the audit: which runs drew a row, and how large a share."""

    def __init__(self, files: Sequence[Sequence[Decision]]) -> None:
        self.drew: dict[Asked, set[str]] = defaultdict(set)
        self.share: dict[str, float] = defaultdict(float)
        for each in itertools.chain.from_iterable(files):
            match each.content.get("audit"):
                case {"run": str(run), "share": int() | float() as share}:
                    self.drew[each.asked].add(run)
                    self.share[run] = max(self.share[run], share)
                case True:
                    self.drew[each.asked].add(OLD)
        found = [standing(decisions) for decisions in files]
        self.unsure = {asked for each in found for (asked, _), one in each.items() if one.kind != "label"}

    def counts(self, asked: Asked, run: str) -> bool:
        """Whether a labelled row is one that the run's audit drew; one of an unknown run is the first's that
        asks for it.
        """
        drew = self.drew.get(asked, set())
        if run not in drew and OLD in drew:
            drew.remove(OLD)
            return True
        return run in drew


def _night(
    path: Path,
    given: Mapping[Asked, Row],
    marks: _Marks,
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
    auto, run = table.filter(pl.col(prefix + "triage") == "auto"), seed_of(path)
    share = marks.share.get(run, 0.0)
    drawn = {name for name in auto[id_column] if audited(run, name, share)} if share else set()
    marked = drawn | {name for name, _ in marks.drew}
    wrong = answered = unsure = unread = 0
    for line in auto.filter(pl.col(id_column).is_in(list(marked))).iter_rows(named=True):
        asked = line[id_column], line[text_column]
        if row := given.get(asked):
            if marks.counts(asked, run):
                answered += 1
                wrong += any(
                    field.read(line[prefix + field.name]) != row.answer[field.name]
                    for field in contract.scored_fields
                )
        elif line[id_column] in drawn:
            unsure += asked in marks.unsure
            unread += asked not in marks.unsure
    return Night(path.name, auto.height, Proportion(wrong, answered), unsure, unread)


def write_audit(path: Path, found: Audit) -> None:
    """The audit as a Prometheus textfile. Raises `StorageError`."""
    low, high = found.wrong.interval
    values = (
        ("rows", "Rows without a person that the audit drew and a person answered.", found.wrong.of),
        ("wrong_rows", "Of those, the rows that were wrong.", found.wrong.count),
        ("undecided_rows", "Rows that it drew and no person answered.", found.undecided),
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
