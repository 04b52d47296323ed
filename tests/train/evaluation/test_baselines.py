"""Baselines and cross-validation on the shipped rows, and on another task."""

import io
import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from rich.console import Console

from batch.contract.contract import Contract
from batch.errors import DatasetError, InputError
from tests.conftest import ROOT
from tests.train.fit.test_qlora import recipe
from train.cli import main
from train.dataset import load_rows
from train.evaluation.baselines import BASELINES, WORDS, Baseline, Tfidf
from train.evaluation.cross_validation import cross_validate_baseline, folds
from train.evaluation.evaluate import evaluate
from train.evaluation.from_scored import read_scored
from train.fit.folds import cross_validate_recipe

TRIAGE = ROOT / "tests/data/triage"


def test_many_words_take_no_more_memory() -> None:
    """A number for each word and value: 20,000 rows of 150 labels took tens of gigabytes."""
    texts = [f"first{n} second{n} third{n} fourth{n}" for n in range(9000)]
    vectors = Tfidf(texts[:2], ["a", "b"]).pipeline(texts)[0].fit_transform(texts)
    assert vectors.shape == (9000, WORDS)


def test_a_method_that_reads_beats_one_that_does_not(contract: Contract) -> None:
    learnt, gold = (
        load_rows(ROOT / "data/v2/train.jsonl", contract),
        load_rows(ROOT / "data/natural.jsonl", contract),
    )
    right = {}
    for name in BASELINES:
        answers = Baseline.learn(name, learnt, contract).answer([row.request for row in gold])
        right[name] = {
            measure: p.count
            for measure, p in evaluate(gold, answers, contract, name, "natural").measures.items()
        }
        assert right[name]["schema-valid"] == len(gold)
    for field in ("tier", "risk", "recommended_platform"):
        assert right["majority"][field] < right["keywords"][field] < right["tfidf"][field]
    commonest = Counter(row.answer["tier"] for row in learnt).most_common(1)[0][0]
    assert right["majority"]["tier"] == sum(row.answer["tier"] == commonest for row in gold)


def test_another_task_with_values_that_training_never_shows() -> None:
    contract = Contract.load(TRIAGE / "contract.toml")
    rows = load_rows(TRIAGE / "train.jsonl", contract)
    calm = [row for row in rows if not row.answer["angry"]]
    for name in BASELINES:
        answers = Baseline.learn(name, calm, contract).answer([row.request for row in rows])
        assert {answer.answer["angry"] for answer in answers} == {False}
        contract.serialise({**answers[0].answer, "summary": "In a few words"})


def test_folds_judge_each_row_once_and_learn_from_the_others(contract: Contract) -> None:
    rows = load_rows(ROOT / "data/v2/train.jsonl", contract)
    parts = folds(rows, contract, 5)
    assert sorted(i for _, judged in parts for i in judged) == list(range(len(rows)))
    assert all(
        not set(learn) & set(judged) and len(learn) + len(judged) == len(rows) for learn, judged in parts
    )
    platforms = [Counter(rows[i].answer["tier"] for i in judged) for _, judged in parts]
    assert (
        max(p["Trusted Functional Builder"] for p in platforms)
        - min(p["Trusted Functional Builder"] for p in platforms)
        <= 3
    )
    with pytest.raises(DatasetError, match="choose from 2 to"):
        folds(rows[:3], contract, 4)
    result = cross_validate_baseline("tfidf", rows, contract, 5, "v2")
    seen = evaluate(
        rows,
        Baseline.learn("tfidf", rows, contract).answer([row.request for row in rows]),
        contract,
        "tfidf",
        "v2",
    )
    # it learnt by heart
    assert result.measures["all fields right"].count < seen.measures["all fields right"].count


def test_an_adapter_is_fitted_again_for_each_fold(
    tiny_base: Path, tmp_path: Path, contract: Contract
) -> None:
    rows = load_rows(ROOT / "data/v1/test.jsonl", contract)
    out = io.StringIO()
    result = cross_validate_recipe(
        recipe(tiny_base, tmp_path), rows, 2, "v1", Console(file=out), engine="replay"
    )
    assert result.measures["parsed"].of == 4 and result.adapter.endswith(".toml")
    assert "fold 2 of 2: 2 rows" in out.getvalue()


def scored(path: Path, rows: list, **columns: list) -> Path:  # type: ignore[type-arg]
    """An output file as `batch-route` writes it, with the gold answers in it."""
    table = pl.DataFrame(
        [{"id": row.id, "request": row.request, **row.answer, "error_code": None} for row in rows],
        infer_schema_length=None,
    )
    table.with_columns(*(pl.Series(name, values) for name, values in columns.items())).write_parquet(path)
    return path


def test_a_scored_file_is_judged_by_id(contract: Contract, tmp_path: Path) -> None:
    gold = ROOT / "data/regression.jsonl"
    rows = load_rows(gold, contract)
    risks = [row.answer["risk"] for row in rows][1:]
    path = scored(
        tmp_path / "out.parquet",
        rows[1:],
        risk=["low", *risks[1:]],
        error_code=[None, None, None, "truncated"],
    )
    report = tmp_path / "eval.json"
    arguments = [
        "eval",
        "--from-scored",
        str(path),
        str(gold),
        "--contract",
        str(ROOT / "data/contract.toml"),
        "--json",
        str(report),
    ]
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    (evaluation,) = json.loads(report.read_text())["evaluations"]
    wrong = risks[0] != "low"
    assert evaluation["adapter"] == "out.parquet" and evaluation["measures"]["parsed"]["count"] == 3
    assert evaluation["measures"]["risk"]["count"] == 3 - wrong
    errors = {miss["id"]: miss["error"] for miss in evaluation["misses"] if miss["field"] == "tier"}
    assert errors == {rows[0].id: "absent", rows[4].id: "truncated"}


def test_a_scored_file_that_does_not_fit_is_refused(contract: Contract, tmp_path: Path) -> None:
    rows = load_rows(ROOT / "data/regression.jsonl", contract)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no PAR1")
    twice, other = (
        scored(tmp_path / "twice.parquet", [rows[0], rows[0]]),
        scored(tmp_path / "other.parquet", rows, request=["x"] * 5),
    )
    for path, message in (
        (tmp_path / "broken.parquet", "is truncated"),
        (twice, "an id twice"),
        (tmp_path / "none.parquet", "No such file"),
    ):
        with pytest.raises(InputError, match=message):
            read_scored(path)
    with pytest.raises(InputError, match="--id-column"):
        read_scored(other, "key")
    for path, gold, message in (
        (other, "regression.jsonl", "another request"),
        (other, "probes.jsonl", "none of the ids"),
    ):
        result = CliRunner().invoke(
            main,
            [
                "eval",
                "--from-scored",
                str(path),
                str(ROOT / "data" / gold),
                "--contract",
                str(ROOT / "data/contract.toml"),
            ],
        )
        assert result.exit_code == 2 and message in result.output
    result = CliRunner().invoke(main, ["eval", "champion", "rows.jsonl", "--cross-validate", "3"])
    assert result.exit_code == 2 and "is already trained" in result.output


@pytest.mark.parametrize("name", ["gold.csv", "gold.parquet", "gold.JSONL"])
def test_every_form_of_gold_rows_judges_a_scored_file_alone(
    contract: Contract, tmp_path: Path, name: str
) -> None:
    rows = load_rows(ROOT / "data/regression.jsonl", contract)
    table = pl.DataFrame([{"id": row.id, "request": row.request, **row.answer} for row in rows])
    write = {".csv": "write_csv", ".parquet": "write_parquet", ".JSONL": "write_ndjson"}
    gold = tmp_path / name
    getattr(table, write[gold.suffix])(gold)
    out = scored(tmp_path / "out.parquet", rows)
    words = ["eval", str(gold), "--from-scored", str(out), "--contract", str(ROOT / "data/contract.toml")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0 and "5/5" in result.output, result.output
