"""A text that lies in the backlog twice, a file that is named twice, and other things found twice or not at all."""

import getpass
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from batch.contract.contract import Contract
from batch.errors import DatasetError
from tests.conftest import ROOT
from tests.train.review.conftest import Output
from train.cli import main
from train.config import Config
from train.dataset import load_rows
from train.evaluation.from_scored import OutputTask
from train.review import serve
from train.review.improve import Extended, extend

CONTRACT = ("--contract", str(ROOT / "data/contract.toml"))
GOLD = [json.loads(line) for line in (ROOT / "data/v2/train.jsonl").read_text().splitlines()]
OTHER = next(row for row in GOLD if row["risk"] != GOLD[0]["risk"])
TEXTS = ["Please reset my password.", "please reset my password", "Beekeepers count hives by phone."]
FRESH = "Zoologists wish to look up feeding plans written down by earlier keepers"


def decided(path: Path, rows: Sequence[tuple[str, str, dict[str, Any]]], **more: Any) -> Path:
    """Decisions of id, request and the labels of a gold row."""
    lines = (
        {**gold, "id": name, "request": request, "decision": "label", "reviewer": "ann", **more}
        for name, request, gold in rows
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def invoke(*line: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in line])


def test_decisions_on_two_rows_with_one_text_are_read_by_every_command(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    scored = output(TEXTS, auto=3)
    labels = decided(
        tmp_path / "l.jsonl",
        [(f"r{i}", t, GOLD[i]) for i, t in enumerate(TEXTS)],
        audit=True,
        adapter="0" * 64,
    )
    with pytest.raises(DatasetError, match=r"l\.jsonl:2: the request is also at .*l\.jsonl:1"):
        load_rows(labels, contract)  # for training it is one row too many
    for line, said in (
        (("apply-reviews", scored, labels, tmp_path / "final.parquet"), "3 rows, 3 answered by people, 0 of"),
        (("audit", scored, "--labels", labels, "--target-error", "0.1"), "0 of 3 audited wrong"),
        (("agreement", labels, labels), "0 requests have different labels"),
        (("candidates", scored, "--labelled", labels, "--out", tmp_path / "next.jsonl"), "0 rows in"),
    ):
        result = invoke(*line, *CONTRACT)
        assert result.exit_code == 0 and said in result.output, result.output
    rows = serve.examples_of(OutputTask(contract, None), labels)
    assert [row.request for row in rows] == TEXTS


def test_an_id_that_is_there_twice_is_refused_in_decisions_too(contract: Contract, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(GOLD[0]) + "\n") * 2)
    with pytest.raises(DatasetError, match="give each row its own"):
        load_rows(path, contract, decisions=True)


def extended(tmp_path: Path, *files: Path) -> tuple[Extended, dict[str, dict[str, Any]]]:
    made = extend(Config.load(ROOT / "train/mini-v2.toml"), files, tmp_path / "out")
    rows = map(json.loads, Path(made.config.data.train).read_text().split("\n")[:-1])
    return made, {row["id"]: row for row in rows}


def test_of_two_nights_with_one_wording_the_later_decision_is_trained_on(
    contract: Contract, tmp_path: Path
) -> None:
    first = decided(tmp_path / "a.jsonl", [("n1", FRESH, GOLD[0])])
    second = decided(tmp_path / "b.jsonl", [("n2", f"{FRESH.lower()}!", OTHER)])
    made, rows = extended(tmp_path, first, second)
    assert made.added == 1 and len(load_rows(made.config.data.train, contract)) == len(GOLD) + 1
    assert rows["n2"]["risk"] == OTHER["risk"] and "n1" not in rows


def test_a_later_decision_that_agrees_with_the_training_row_leaves_it(tmp_path: Path) -> None:
    text = GOLD[0]["request"]
    labels = decided(
        tmp_path / "l.jsonl", [("n1", text, OTHER), ("n2", text.upper(), GOLD[0]), ("n3", FRESH, OTHER)]
    )
    made, rows = extended(tmp_path, labels)
    assert (made.added, made.known) == (1, 1) and len(rows) == len(GOLD) + 1
    assert rows[GOLD[0]["id"]] == {key: GOLD[0][key] for key in rows[GOLD[0]["id"]]}


def test_an_output_counts_once_in_the_audit(output: Output, tmp_path: Path) -> None:
    scored = output(12, auto=12)
    texts = pl.read_parquet(scored)["request"]
    labels = decided(
        tmp_path / "l.jsonl",
        [(f"r{i}", text, GOLD[i]) for i, text in enumerate(texts)],
        audit=True,
        adapter="0" * 64,
    )
    line = ("--labels", labels, *CONTRACT, "--target-error", "0.1")
    assert "12 audited rows are too few" in invoke("audit", scored, *line).output
    (linked := tmp_path / "linked.parquet").symlink_to(scored)
    for other in (scored, linked):
        result = invoke("audit", scored, other, *line)
        assert result.exit_code == 2
        assert result.output == f"Error: {scored} and {other} are one output; name each once\n"


def test_answers_are_not_written_into_a_folder(output: Output, tmp_path: Path) -> None:
    scored = output(2)
    labels = decided(tmp_path / "l.jsonl", [("r0", pl.read_parquet(scored)["request"][0], GOLD[0])])
    parts = tmp_path / "parts"
    parts.mkdir()
    scored.rename(parts / "part-0.parquet")
    result = invoke("apply-reviews", parts, labels, tmp_path / "final.parquet", *CONTRACT)
    assert result.exit_code == 2
    assert result.output == f"Error: {parts}: is a folder; join its parts into one Parquet file first\n"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_decisions_that_became_a_table_are_refused(output: Output, tmp_path: Path, kind: str) -> None:
    scored = output(2)
    labels = decided(tmp_path / "l.jsonl", [("r0", pl.read_parquet(scored)["request"][0], GOLD[0])])
    table = pl.read_ndjson(labels).drop("facts")
    getattr(table, f"write_{kind}")(path := tmp_path / f"l.{kind}")
    for line in (
        ("apply-reviews", scored, path, tmp_path / "final.parquet"),
        ("audit", scored, "--labels", path, "--target-error", "0.1"),
    ):
        result = invoke(*line, *CONTRACT)
        assert result.exit_code == 2 and len(result.output.splitlines()) == 1
        assert f"{path}: is not a file of reviewers' decisions" in result.output


def test_a_user_without_a_name_is_asked_for_one(
    output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nobody)
    result = invoke("review", output(2), "--labels", tmp_path / "l.jsonl", *CONTRACT)
    assert result.exit_code == 2
    assert result.output == "Error: the user has no login name; say who decides with --reviewer\n"
    assert not (tmp_path / "l.jsonl").exists()


@pytest.mark.parametrize("named", ["", ",", " , "])
def test_a_diagnosis_of_no_adapter_is_refused(named: str) -> None:
    result = invoke("diagnose", named, ROOT / "data/regression.jsonl")
    assert result.exit_code == 2 and result.output == "Error: no adapter to diagnose; name one\n"
