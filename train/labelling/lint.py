"""What is wrong, or may be wrong, with labelled requests: a finding a line, errors that `fit` refuses before
hints.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from batch.contract.contract import Contract
from batch.contract.fields import as_text
from batch.errors import DatasetError
from train.dataset import Row, near_duplicates, read_rows
from train.evaluation.baselines import probabilities, vectoriser
from train.evaluation.cross_validation import folds
from train.likeness import NEAR_DUPLICATE, signs

FOLDS = 5
LONG = 80  # characters of a label that are shown
RARE = 3  # a value in fewer rows than this is hardly learnt
# What a fold's model learns from at most: a hint needs no better one, and 10,000 rows would take minutes.
ROWS, WORDS = 1500, 10_000


@dataclasses.dataclass(frozen=True)
class Finding:
    """`kind` is refused, leak, near-duplicate, balance or label; the first two are errors."""

    kind: str
    where: str
    message: str

    @property
    def error(self) -> bool:
        return self.kind in ("refused", "leak")

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.message}"


def lint(paths: Sequence[Path], contract: Contract, limit: float = NEAR_DUPLICATE) -> list[Finding]:
    """Findings on the files together; each file is a split, and the first is trained on: its rows need ids
    and texts. Raises `DatasetError` for a file that cannot be read.
    """
    found: list[Finding] = []
    rows: list[Row] = []
    for path in paths:
        before = len(rows) + len(found)
        for row in read_rows(path, contract, evaluation=path != paths[0]):
            if isinstance(row, DatasetError):
                where, _, message = str(row).partition(": ")
                found.append(Finding("refused", where, message))
            else:
                rows.append(row)
        if len(rows) + len(found) == before:
            raise DatasetError(f"{path}: holds no rows; add labelled requests")
    found += _repeated_ids(rows)
    found += (repeats := list(_repeated_texts(rows)))
    told = {finding.where for finding in repeats}
    for row, twin, likeness in near_duplicates(rows, limit):
        if row.path == twin.path and row.where in told:
            continue
        kind, note = ("leak", "in another split") if row.path != twin.path else ("near-duplicate", "")
        same = all(row.answer[field.name] == twin.answer[field.name] for field in contract.scored_fields)
        note = note or ("teaches little" if same else "has another label: one of them may be wrong")
        found.append(
            Finding(
                kind,
                row.where,
                f"nearly the request of {twin.where} (likeness {likeness:.2f}), which {_is(note)}",
            )
        )
    found += _balance(paths[0], [row for row in rows if row.path == paths[0]], contract)
    found += label_errors(rows, contract)
    return sorted(found, key=lambda each: not each.error)


def _is(note: str) -> str:
    return f"is {note}" if note.startswith("in ") else note


def _repeated_ids(rows: Iterable[Row]) -> Iterator[Finding]:
    first: dict[str, Row] = {}
    for row in rows:
        if row.id in first and not row.id.startswith("line "):
            yield Finding("refused", row.where, f"id {row.id!r} is also at {first[row.id].where}")
        first.setdefault(row.id, row)


def _repeated_texts(rows: Iterable[Row]) -> Iterator[Finding]:
    first: dict[tuple[Path, tuple[str, ...]], Row] = {}
    for row in rows:
        twin = first.setdefault((row.path, tuple(signs(row.request))), row)
        if twin is not row:
            yield Finding("refused", row.where, f"the request is also at {twin.where}")


def _balance(path: Path, rows: Sequence[Row], contract: Contract) -> Iterator[Finding]:
    """Of the first file, which is the one that is trained on."""
    for field in contract.scored_fields if rows else ():
        counts = Counter(value for row in rows for value in field.chosen(row.answer[field.name]))
        if rare := [f"{_shown(value)} ({counts[value]})" for value in field.values if counts[value] < RARE]:
            told = f"{field.name}: fewer than {RARE} rows have {', '.join(rare)}; label more"
            yield Finding("balance", str(path), told)


def _shown(value: Any) -> str:
    text = as_text(value)
    return repr(text if len(text) <= LONG else f"{text[:LONG]}…")


def label_errors(rows: Sequence[Row], contract: Contract) -> list[Finding]:
    """Labels that a model of the other rows contradicts with confidence, the surest first.

    Confident learning (Northcutt, Jiang and Chuang 2021): out-of-fold probabilities, and as each value's
    threshold the mean probability that rows with that value give to it. A hint, not a verdict.
    """
    if len(rows) < 2 * FOLDS:
        return []
    try:
        parts = folds(rows, contract, FOLDS)
    except DatasetError:  # too few that are not nearly equal
        return []
    texts = [row.request for row in rows]
    vectors = vectoriser(texts, WORDS).fit_transform(texts)  # once: how common words are tells no label
    suspects: list[tuple[float, Finding]] = []
    for field in contract.scored_fields:
        own = [row.answer[field.name] for row in rows]
        chances: list[dict[object, float]] = [{} for _ in rows]
        for learn, judged in parts:
            some = learn[:: math.ceil(len(learn) / ROWS)]
            seen = probabilities(vectors[some], [own[i] for i in some], vectors[judged])
            for i, line in zip(judged, seen, strict=True):
                chances[i] = line
        threshold = {
            v: sum(c.get(v, 0.0) for c, o in zip(chances, own, strict=True) if o == v) / own.count(v)
            for v in set(own)
        }
        for row, given, line in zip(rows, own, chances, strict=True):
            sure = {value: p for value, p in line.items() if value in threshold and p >= threshold[value]}
            if not sure or (best := max(sure, key=lambda value: sure[value])) == given or given in sure:
                continue
            gap = sure[best] - line.get(given, 0.0)
            message = (
                f"{field.name} is {_shown(given)} (probability {line.get(given, 0.0):.2f}), by the other "
                f"rows it is {_shown(best)} ({sure[best]:.2f})"
            )
            suspects.append((gap, Finding("label", row.where, message)))
    whole: dict[str, float] = defaultdict(float)  # a row that is contradicted in several fields comes first
    for gap, finding in suspects:
        whole[finding.where] += gap
    return [finding for _, finding in sorted(suspects, key=lambda each: (-whole[each[1].where], -each[0]))]
