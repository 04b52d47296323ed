"""What becomes of a scored row on its way into the output: calibrated scores, enforced rules, who has to look
at it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from batch.adapter.bundle import Bundle
from batch.adapter.calibration import EDGE, Calibration, Triage, product
from batch.contract.contract import Contract
from batch.contract.fields import LIST, Field
from batch.scoring.adapters import Answers
from batch.scoring.lane import ScoredRow
from batch.scoring.runner_up import Second


class Outcome(NamedTuple):
    """A row as the output has it. All but `triage` are None for an error row."""

    answer: dict[str, Any] | None
    scores: dict[str, float] | None
    score: float | None
    triage: Triage
    model: dict[str, Any] | None  # the model's own answer, which an enforced rule may have corrected
    applied: tuple[str, ...] | None  # names of the rules that did
    label_scores: dict[str, tuple[float, ...]]  # raw; see `ScoredRow`
    seconds: dict[str, Second]  # calibrated


UNKNOWN = (None, None)
NOBODYS = Outcome(None, None, None, "human", None, None, {}, {})


def outcomes(rows: Sequence[ScoredRow], contract: Contract, calibration: Calibration) -> list[Outcome]:
    """Scores stay those of the model's own values; a row whose answer broke a rule, corrected or not, is for
    a person.
    """
    answered = [row for row in rows if row.answer is not None]
    calibrated = iter(
        calibration.apply([row.scores or {} for row in answered], [row.answer or {} for row in answered])
    )
    return [
        NOBODYS if row.answer is None else _outcome(row, row.answer, next(calibrated), contract, calibration)
        for row in rows
    ]


def _outcome(
    row: ScoredRow,
    model: dict[str, Any],
    scores: dict[str, float],
    contract: Contract,
    calibration: Calibration,
) -> Outcome:
    score = product(scores)
    # a rule corrects only what breaks it
    answer, applied = contract.enforce(model, row.violations, row.denied) if row.violations else (model, ())
    triage = calibration.triage(score, row.violations)
    seconds = {
        name: _calibrated(second, (row.scores or {})[name], scores[name])
        for name, second in (row.seconds or {}).items()
    }
    return Outcome(answer, scores, score, triage, model, applied, row.label_scores or {}, seconds)


def _calibrated(second: Second, raw: float, calibrated: float) -> Second:
    """Calibration moves probability between the chosen value and all others; their shares of it stay."""
    value, probability = second
    return value, (1 - calibrated) * min(1.0, probability / max(1 - raw, EDGE))


def output_batch(
    batch: pa.RecordBatch,
    rows: Sequence[ScoredRow],
    bundles: Sequence[Bundle | None],
    answers: Answers,
    schema: pa.Schema,
) -> pa.RecordBatch:
    """The input's columns as they are, then what `output_columns` names, in that order. `schema` is the
    output's.
    """
    made = [NOBODYS] * len(rows)
    groups: dict[str, tuple[Bundle, list[int]]] = {}  # by digest: two loads of one bundle are two objects
    for index, bundle in enumerate(bundles):
        if bundle:
            groups.setdefault(bundle.digest, (bundle, []))[1].append(index)
    for bundle, places in groups.values():
        for index, each in zip(
            places,
            outcomes([rows[index] for index in places], bundle.contract, bundle.calibration),
            strict=True,
        ):
            made[index] = each
    columns = _by_field([each.answer for each in made], answers.fields)
    columns += _by_field([each.scores for each in made], answers.scored_fields)
    sets = [field.name for field in answers.scored_fields if field.arrow == LIST]
    columns += [[each.label_scores.get(name) for each in made] for name in sets]
    ranked = [field.name for field in answers.scored_fields if field.ranked]
    seconds = [[each.seconds.get(name, UNKNOWN) for each in made] for name in ranked]
    columns += [[second[part] for second in column] for part in (0, 1) for column in seconds]
    codes = [row.error_code for row in rows]
    columns += [[each.score for each in made], ["error" if code else "ok" for code in codes], codes]
    columns += [[row.error for row in rows]]
    columns += [[bundle and bundle.digest for bundle in bundles]]
    columns += [[each.triage for each in made]] if answers.triage else []
    columns += _by_field([each.model for each in made], answers.enforced_fields)
    columns += (
        [[", ".join(each.applied) if each.applied else None for each in made]]
        if answers.enforce_rules
        else []
    )
    added = list(schema)[batch.num_columns :]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, added, strict=True)]
    return pa.RecordBatch.from_arrays([*batch.columns, *arrays], schema=schema)


def _by_field(values: Sequence[Mapping[str, Any] | None], fields: Sequence[Field]) -> list[list[Any]]:
    """A column for each field; None where a row has no values, or its contract no such field."""
    rows = [each or {} for each in values]
    return [[row.get(field.name) for row in rows] for field in fields]
