"""Sets of labels, numbers and null where answers are judged, calibrated, counted and kept."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from batch.adapter.calibration import Calibration
from batch.contract.contract import Contract
from batch.contract.fields import as_text
from batch.reporting.tally import tally_of
from batch.scoring.cache import AnswerStore
from batch.scoring.lane import ScoredRow
from tests.conftest import ROOT
from train.dataset import Row, load_rows
from train.evaluation.baselines import Baseline
from train.evaluation.evaluate import evaluate
from train.evaluation.from_scored import judge_scored
from train.evaluation.statistics import macro_f1_of_sets
from train.fit.calibrate import calibrate
from train.labelling.lint import lint

FOLDER = ROOT / "tests/data/tickets"
TICKETS = Contract.load(FOLDER / "contract.toml")


def row(number: int, **answer: Any) -> Row:
    whole = {"trades": ("plumber",), "severity": 2, "floor": None, "note": "xxx", **answer}
    return Row(str(number), f"request {number} on water", whole, None, Path("rows.jsonl"), number)


def given(gold: Row, score: float = 0.9, **changed: Any) -> ScoredRow:
    scores = {field.name: score for field in TICKETS.scored_fields}
    return ScoredRow({**gold.answer, **changed}, scores)


def test_null_is_an_answer_and_no_answer_is_none() -> None:
    gold = [row(1), row(2, floor="roof"), row(3)]
    answers = [given(gold[0]), given(gold[1], floor=None), ScoredRow(None, None, (), "truncated")]
    result = evaluate(gold, answers, TICKETS, "a", "d")
    assert result.right("floor") == [True, False, False] and result.right("trades") == [True, True, False]
    assert result.confusion["floor"] == {
        ("none of these", "none of these"): 1, ("roof", "none of these"): 1, ("none of these", None): 1,
    }  # fmt: skip
    assert result.measures["schema-valid"].count == 2


def test_a_set_is_right_as_a_whole_and_its_f1_is_over_labels() -> None:
    gold = [row(1, trades=("plumber", "glazier")), row(2, trades=()), row(3, severity=5, floor="roof")]
    answers = [given(gold[0], trades=("plumber",)), given(gold[1]), given(gold[2], severity=4)]
    result = evaluate(gold, answers, TICKETS, "a", "d")
    assert result.right("trades") == [False, True, True]
    assert result.f1["trades"] == pytest.approx((1 + 0) / 2)  # plumber 2 of 2, glazier 0 of 1
    assert macro_f1_of_sets(
        {('["a","b"]', '["a"]'): 2, ('["a"]', '["b"]'): 1, ("[]", None): 1}
    ) == pytest.approx((4 / 5 + 0) / 2)
    assert (result.under_escalation["severity"].count, result.under_escalation["severity"].of) == (1, 1)


def test_curves_go_by_value_and_for_a_set_by_its_size(tmp_path: Path) -> None:
    sets = [(), ("plumber",), ("plumber", "glazier")]
    gold = [row(n, trades=sets[n % 3], severity=1 + n % 5, floor=(None, "roof")[n % 2]) for n in range(240)]
    answers = [given(each, 0.6 + 0.001 * n, severity=1 + n % 4) for n, each in enumerate(gold)]
    content = calibrate(gold, answers, TICKETS, 0.05)
    assert list(content["fields"]["trades"]) == ["0", "1", "2", "3", "4"]
    assert list(content["fields"]["floor"]) == ["ground", "first", "roof", "none of these"]
    assert list(content["fields"]["severity"]) == ["1", "2", "3", "4", "5"]
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    served = Calibration.load(tmp_path / "calibration.json", TICKETS)
    found = served.apply([each.scores or {} for each in answers], [each.answer or {} for each in answers])
    assert all(0 < score < 1 for scores in found for score in scores.values())
    assert {as_text(value) for value in served.fields["floor"]} == set(content["fields"]["floor"])


def test_a_file_of_answers_is_judged_and_counted() -> None:
    gold = [row(1), row(2, trades=(), floor="roof"), row(3, trades=("plumber", "locksmith"))]
    lines = [
        {
            "id": each.id,
            "request": each.request,
            **each.answer,
            "trades": list(each.answer["trades"]),
            "error_code": None,
            "score": 0.5,
            **{f"{field.name}_score": 0.5 for field in TICKETS.scored_fields},
        }
        for each in gold
    ]
    table = pl.DataFrame(lines, infer_schema_length=None, schema_overrides={"error_code": pl.String})
    result = judge_scored(table, Path("out.parquet"), gold, TICKETS, "d")
    assert result.measures["all fields right"].count == 3
    arrow = table.to_arrow()
    trades = arrow["trades"].cast(pa.list_(pa.string()))
    arrow = arrow.set_column(arrow.column_names.index("trades"), "trades", trades)
    values = tally_of(arrow, TICKETS, "", Counter()).values
    assert values["trades"] == {"plumber": 2, "locksmith": 1, "none of these": 1}
    assert values["floor"] == {"roof": 1, "none of these": 2} and values["severity"] == {"2": 3}


def test_an_answer_is_kept_as_it_was(tmp_path: Path) -> None:
    kept = given(row(1, trades=("plumber", "glazier")))._replace(
        violations=("r",), label_scores={"trades": (0.5, 0.25)}, denied=("r",)
    )
    plain = given(row(2, trades=()))
    with AnswerStore.open(tmp_path, {}) as store:
        store.remember("a", {"x": kept, "y": plain})
        assert store.recall("a", ["x", "y"]) == {"x": kept, "y": plain}


def test_baselines_and_lint_know_them() -> None:
    rows = load_rows(FOLDER / "train.jsonl", TICKETS)
    for name in ("majority", "keywords", "tfidf"):
        for guess in Baseline.learn(name, rows, TICKETS).answer([rows[0].request]):
            assert TICKETS.serialise({**TICKETS.stand_ins, **guess.answer})
    said = [
        finding.message for finding in lint([FOLDER / "train.jsonl"], TICKETS) if finding.kind == "balance"
    ]
    assert not any("[]" in message for message in said)
