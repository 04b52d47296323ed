"""Judge answers to labelled requests, layer by layer and field by field.

    parsed → schema-valid → each field → all fields right

Pure: gold rows and the answers to them → counts with intervals. `train/evaluation/ask.py` gets answers from
the engine, `train/evaluation/baselines.py` from simple methods, `train/evaluation/from_scored.py` from a
file. A row without an answer is wrong in every field. Judged is what an output holds: rules that the contract
enforces have corrected a model's answer there.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import polars as pl

from batch.contract.contract import Contract
from batch.contract.fields import LIST, as_text
from batch.errors import InvalidAnswer
from batch.scoring.lane import ScoredRow
from train.dataset import Row
from train.evaluation.statistics import McNemar, Proportion, macro_f1, macro_f1_of_sets

ALL = "all fields right"
CHECKS = "field checks"


class Answered(Protocol):
    """What evaluation reads of a `batch.scoring.lane.ScoredRow`."""

    @property
    def answer(self) -> dict[str, Any] | None: ...
    @property
    def error_code(self) -> str | None: ...


@dataclasses.dataclass(frozen=True)
class Miss:
    """One wrong field of one row. `predicted` is None where the row has no answer; `error` says why."""

    id: str
    request: str
    field: str
    gold: str
    predicted: str | None
    error: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """`checks` has a line for each row and scored field, in order: row, id, request, field, gold, answered
    (null without an answer), right, error. Values are texts, as :func:`as_text` makes them."""

    adapter: str
    dataset: str
    checks: pl.DataFrame
    # `parsed`, `schema-valid`, each scored field, `all fields right`, `field checks`
    measures: Mapping[str, Proportion]
    under_escalation: Mapping[str, Proportion]  # field → let through, of those that its `escalates` lists
    all_right: Sequence[bool]  # row by row
    sets: frozenset[str] = frozenset()  # the fields whose values are sets of labels
    seen: int | None = None  # rows that the adapter was trained on, or nearly; None where nobody knows

    @functools.cached_property
    def fields(self) -> list[str]:
        return self.checks["field"].unique(maintain_order=True).to_list()

    @functools.cached_property
    def confusion(self) -> dict[str, dict[tuple[str, str | None], int]]:
        """Field → (gold, answered) → rows."""
        counted = self.checks.group_by("field", "gold", "answered", maintain_order=True).len()
        return {name: {(g, a): n for f, g, a, n in counted.iter_rows() if f == name} for name in self.fields}

    @functools.cached_property
    def f1(self) -> dict[str, float]:
        """Field → macro-F1, over its values, or of a set over its labels."""
        return {
            name: (macro_f1_of_sets if name in self.sets else macro_f1)(cells)
            for name, cells in self.confusion.items()
        }

    @functools.cached_property
    def misses(self) -> list[Miss]:
        wrong = self.checks.filter(~pl.col("right")).select(
            "id", "request", "field", "gold", "answered", "error"
        )
        return [Miss(*line) for line in wrong.iter_rows()]

    def right(self, measure: str) -> list[bool]:
        """Row by row, whether a field (or `all fields right`) is right."""
        return (
            list(self.all_right)
            if measure == ALL
            else self.checks.filter(pl.col("field") == measure)["right"].to_list()
        )

    def as_json(self) -> dict[str, Any]:
        cells = {
            name: [
                {"gold": gold, "answered": answered, "rows": rows} for (gold, answered), rows in cells.items()
            ]
            for name, cells in self.confusion.items()
        }
        return {
            "adapter": self.adapter,
            "dataset": self.dataset,
            "seen_in_training": self.seen,
            "measures": {name: proportion.as_json() for name, proportion in self.measures.items()},
            "macro_f1": self.f1,
            "under_escalation": {
                name: proportion.as_json() for name, proportion in self.under_escalation.items()
            },
            "confusion": cells,
            "misses": [dataclasses.asdict(miss) for miss in self.misses],
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two adapters on the same rows of a dataset, measure by measure."""

    first: str
    second: str
    dataset: str
    tests: Mapping[str, McNemar]  # `all fields right` and each scored field

    def as_json(self) -> dict[str, Any]:
        names = {"first": self.first, "second": self.second, "dataset": self.dataset}
        return {
            **names,
            "test": "exact McNemar",
            "measures": {name: test.as_json() for name, test in self.tests.items()},
        }


def evaluate(
    rows: Sequence[Row],
    answers: Iterable[Answered],
    contract: Contract,
    adapter: str,
    dataset: str,
    seen: int | None = None,
) -> Evaluation:
    """Compare each row with its answer, in order. Raises `ValueError` where there are not as many of them."""
    fields = contract.scored_fields
    lines, all_right, parsed, valid = [], [], 0, 0
    through = {field.name: Proportion(0, 0) for field in fields if field.escalates}
    for number, (row, scored) in enumerate(zip(rows, answers, strict=True)):
        answer = _written(scored, contract)
        legal = scored.answer is not None and _legal(answer, contract)
        parsed, valid, right = parsed + (scored.answer is not None), valid + legal, legal
        for field in fields:
            gold, answered = row.answer[field.name], answer.get(field.name)
            given = field.name in answer
            hit = given and gold == answered
            right = right and hit
            lines.append(
                (
                    number,
                    row.id,
                    row.request,
                    field.name,
                    as_text(gold),
                    as_text(answered) if given else None,
                    hit,
                    scored.error_code,
                )
            )
            if field.grave(gold):  # no answer lets nothing through: it is an error row, which a person sees
                through[field.name] += Proportion(given and field.under_escalates(gold, answered), 1)
        all_right.append(right)
    columns = {"row": pl.Int64, **dict.fromkeys(("id", "request", "field", "gold", "answered"), pl.String)}
    checks = pl.DataFrame(lines, schema={**columns, "right": pl.Boolean, "error": pl.String}, orient="row")
    per_field = dict(checks.group_by("field", maintain_order=True).agg(pl.col("right").sum()).iter_rows())
    counts = {"parsed": parsed, "schema-valid": valid, **per_field, ALL: sum(all_right)}
    measures = {name: Proportion(count, len(rows)) for name, count in counts.items()}
    # The first experiment counted these: 19 of 20.
    measures[CHECKS] = Proportion(valid + sum(per_field.values()), len(rows) * (1 + len(fields)))
    sets = frozenset(field.name for field in fields if field.arrow == LIST)
    return Evaluation(adapter, dataset, checks, measures, through, all_right, sets, seen)


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Exact McNemar on the rows that only one of the two got right. Raises `ValueError` for
    different rows.
    """
    if first.checks["id"].to_list() != second.checks["id"].to_list():
        raise ValueError("a paired test needs the same rows and fields on both sides")
    tests = {}
    for name in (ALL, *first.fields):
        pairs = list(zip(first.right(name), second.right(name), strict=True))
        tests[name] = McNemar(
            sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs), len(pairs)
        )
    return Comparison(first.adapter, second.adapter, first.dataset, tests)


def comparisons(evaluations: Sequence[Evaluation]) -> list[Comparison]:
    """Every pair on the same dataset that answers the same fields, in the order given."""
    pairs = itertools.combinations(evaluations, 2)
    return [compare(a, b) for a, b in pairs if a.dataset == b.dataset and a.fields == b.fields]


def _written(scored: Answered, contract: Contract) -> Mapping[str, Any]:
    """The answer as an output has it; one that is from a file is that already."""
    if scored.answer is None or not isinstance(scored, ScoredRow):
        return scored.answer or {}
    return contract.enforce(scored.answer, scored.violations, scored.denied)[0]


def _legal(answer: Mapping[str, Any], contract: Contract) -> bool:
    """Whether the contract accepts `answer`; a text that a simple method does not write is stood in for."""
    try:
        contract.serialise({**contract.stand_ins, **answer})
    except InvalidAnswer:
        return False
    return True
