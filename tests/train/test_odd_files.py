"""Whatever file a command is given in place of the one it needs: a line that says what to do, and exit code 2."""

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from batch.contract.contract import Contract
from tests.conftest import ROOT
from train.cli import main
from train.config import Config
from train.dataset import load_rows
from train.decisions import DecisionLog

NATURAL, CONTRACT = "data/natural.jsonl", "data/contract.toml"
ODD = {
    "nothing there": None,
    "a directory": None,
    "below a file": None,
    "a name that is too long": None,
    "empty": b"",
    "blank": b"\n\n",
    "not UTF-8": b"\xff\xfe{}",
    "NUL bytes": bytes(50),
    "nested deeply": b"a = " + b"[" * 100_000,
    "a number of 5,000 digits": b"a = " + b"9" * 5_000,
}
OF_JSON = {
    "nested": b"[" * 100_000,
    "a key twice": b'{"id": "1", "id": "2", "request": "x"}',
    "a list": b"[1]",
    "a text": b'"decision"',
    "a decision with a key twice": b'{"id": "1", "decision": "skip", "reviewer": "a", "id": "2"}',
}
DATASETS = {
    "eval": ["eval", "majority", "{}", "--train", NATURAL],
    "eval --train": ["eval", "majority", NATURAL, "--train", "{}"],
    "eval --cross-validate": ["eval", "majority", "{}", "--cross-validate", "2"],
    "agreement": ["agreement", "{}", NATURAL],
    "audit": ["audit", "out.parquet", "--labels", "{}", "--contract", CONTRACT, "--target-error", "0.1"],
    "apply-reviews": ["apply-reviews", "out.parquet", "{}", "final.parquet", "--contract", CONTRACT],
    "candidates": ["candidates", "out.parquet", "--labelled", "{}", "--contract", CONTRACT],
    "review --only": ["review", "out.parquet", "--labels", "l.jsonl", "--contract", CONTRACT, "--only", "{}"],
    "review --examples": [
        "review",
        "out.parquet",
        "--labels",
        "l.jsonl",
        "--contract",
        CONTRACT,
        "--examples",
        "{}",
    ],
    "contract init": ["contract", "init", "{}", "--label-column", "tier", "--out", "task"],
    "improve": ["improve", "train/mini.toml", "{}", "--out", "reviewed"],
}
RECIPES = {
    "plan": ["plan", "{}"],
    "fit": ["fit", "{}"],
    "improve": ["improve", "{}", NATURAL],
    "loop": ["loop", "a={},b=train/mini.toml", NATURAL],
}
CONTRACTS = {
    "lint": ["lint", NATURAL, "--contract", "{}"],
    "import": ["import", "nowhere", "--contract", "{}", "--base", "data/mini-base"],
    "candidates": ["candidates", "out.parquet", "--contract", "{}"],
}
SCORED = {
    "candidates": ["candidates", "{}", "--contract", CONTRACT],
    "review": ["review", "{}", "--labels", "l.jsonl", "--contract", CONTRACT],
    "audit": ["audit", "{}", "--labels", NATURAL, "--contract", CONTRACT, "--target-error", "0.1"],
    "apply-reviews": ["apply-reviews", "{}", NATURAL, "final.parquet", "--contract", CONTRACT],
    "eval --from-scored": ["eval", "--from-scored", "{}", NATURAL],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped data, its contract, and an output that `candidates` and `review` read."""
    for name in ("data", "train"):
        (tmp_path / name).symlink_to(ROOT / name)
    rows = [json.loads(line) for line in (ROOT / NATURAL).read_text().splitlines()][:3]
    scores = {"score": 0.5, "status": "ok", "adapter": "0" * 64, "triage": "human"}
    table = [{**row, "reason": "It is short.", **scores} for row in rows]
    pl.DataFrame(table, infer_schema_length=None).drop("facts").write_parquet(tmp_path / "out.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "adapters"))
    return tmp_path


def odd(folder: Path, case: str, content: bytes | None, suffix: str) -> Path:
    path = folder / f"odd.{suffix}"
    if case == "a directory":
        path.mkdir()
    elif case == "below a file":
        path.write_bytes(b"x")
        return path / f"odd.{suffix}"
    elif case == "a name that is too long":
        return folder / f"{'x' * 5_000}.{suffix}"
    elif content is not None:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", [*ODD, *OF_JSON])
def test_in_place_of_a_dataset(place: Path, case: str) -> None:
    refused_by_all(DATASETS, odd(place, case, {**ODD, **OF_JSON}[case], "jsonl"))


@pytest.mark.parametrize("case", ODD)
def test_in_place_of_a_table(place: Path, case: str) -> None:
    of_tables = {name: words for name, words in DATASETS.items() if "review --only" not in name}
    refused_by_all(of_tables, odd(place, case, ODD[case], "csv"))


@pytest.mark.parametrize("case", ODD)
def test_in_place_of_a_recipe_or_contract(place: Path, case: str) -> None:
    refused_by_all(RECIPES | CONTRACTS, odd(place, case, ODD[case], "toml"))


@pytest.mark.parametrize("case", ODD)
def test_in_place_of_an_output(place: Path, case: str) -> None:
    refused_by_all(SCORED, odd(place, case, ODD[case], "parquet"))


def refused_by_all(commands: dict[str, list[str]], path: Path) -> None:
    for name, words in commands.items():
        result = CliRunner().invoke(main, [word.format(path) for word in words])
        lines = result.output.splitlines()
        assert result.exit_code == 2 and len(lines) == 1, (name, result.output)


def test_byte_order_marks_and_carriage_returns_are_read(place: Path, contract: Contract) -> None:
    def windows(name: str) -> bytes:
        return b"\xef\xbb\xbf" + (ROOT / name).read_bytes().replace(b"\n", b"\r\n")

    (place / "rows.jsonl").write_bytes(windows(NATURAL))
    (place / "c.toml").write_bytes(windows(CONTRACT))
    (place / "r.toml").write_bytes(windows("train/mini.toml"))
    wanted = [(row.id, row.request) for row in load_rows(ROOT / NATURAL, contract, evaluation=True)]
    assert [
        (row.id, row.request) for row in load_rows(place / "rows.jsonl", contract, evaluation=True)
    ] == wanted
    assert Contract.load(place / "c.toml").fields == contract.fields
    assert Config.load(place / "r.toml").training == Config.load(ROOT / "train/mini.toml").training


def test_an_editors_byte_order_mark_in_a_file_of_decisions(place: Path, contract: Contract) -> None:
    gold = json.loads((ROOT / "data/v2/train.jsonl").read_text().splitlines()[0])
    line = json.dumps({**gold, "decision": "label", "reviewer": "ann"}) + "\r\n"
    (place / "labels.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode())
    assert [row.id for row in load_rows(place / "labels.jsonl", contract)] == [gold["id"]]
    log = DecisionLog(place / "labels.jsonl")
    assert [each.asked for each in log.decisions] == [(gold["id"], gold["request"])]
    log.close()
    result = CliRunner().invoke(
        main, ["apply-reviews", "out.parquet", "labels.jsonl", "final.parquet", "--contract", CONTRACT]
    )
    assert "none of the decisions (1) is on a row of out.parquet" in result.output


def test_lint_of_a_file_without_rows(place: Path) -> None:
    (place / "none.jsonl").write_text("\n")
    result = CliRunner().invoke(main, ["lint", NATURAL, "none.jsonl", "--contract", CONTRACT])
    assert result.exit_code == 2 and "none.jsonl: holds no rows; add labelled requests" in result.output
