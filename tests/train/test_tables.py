"""Labelled rows out of spreadsheets and warehouses: the same rows as JSON lines give."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.contract.contract import Contract
from batch.errors import ConfigError, DatasetError
from train.config import Config
from train.dataset import Row, load_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "data/v1/train.jsonl").read_text().splitlines()]


def values(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.id, row.request, dict(row.answer), row.facts) for row in rows]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("true", ["true", "TRUE", "True"])
def test_csv_gives_the_rows_of_json_lines(
    tmp_path: Path, contract: Contract, lines: list[dict[str, Any]], delimiter: str, encoding: str, true: str
) -> None:
    path = tmp_path / "rows.csv"
    names = list(lines[0])
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(names)
        for line in lines:
            cells = {**line, "needs_review": true if line["needs_review"] else "FALSE"}
            writer.writerow(
                [json.dumps(cells[n]) if isinstance(cells.get(n), dict) else cells.get(n, "") for n in names]
            )
    wanted = load_rows(ROOT / "data/v1/train.jsonl", contract)
    assert values(load_rows(path, contract)) == values(wanted)


def test_parquet_gives_the_rows_of_json_lines(
    tmp_path: Path, contract: Contract, lines: list[dict[str, Any]]
) -> None:
    table = pa.Table.from_pylist([{**line, "facts": json.dumps(line.get("facts"))} for line in lines])
    tier = table.schema.get_field_index("tier")
    table = table.set_column(tier, "tier", table.column("tier").dictionary_encode())
    pq.write_table(table, tmp_path / "rows.parquet")
    wanted = load_rows(ROOT / "data/v1/train.jsonl", contract)
    assert values(load_rows(tmp_path / "rows.parquet", contract)) == values(wanted)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, contract: Contract) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (ROOT / "data/v1/train.jsonl").read_bytes())
    assert len(load_rows(path, contract)) == 24
    contract_path = tmp_path / "contract.toml"
    contract_path.write_bytes(b"\xef\xbb\xbf" + (ROOT / "data/contract.toml").read_bytes())
    assert Contract.load(contract_path).fingerprint == contract.fingerprint
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(b"\xef\xbb\xbf" + (ROOT / "train/mini.toml").read_bytes())
    assert Config.load(recipe).base.model


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"id,request,tier\n1,x\n", r"rows.csv:2: does not have as many cells as the header"),
        ("rows.csv", b"id,request,tier\n1,x,y,z\n", r"rows.csv:2: does not have as many cells"),
        ("rows.csv", b"id,request,id\n1,x,2\n", r"rows.csv:1: a column is duplicated"),
        (
            "rows.csv",
            b"id,request,teir\n1,x,y\n",
            r"rows.csv:2: unknown key 'teir' \(did you mean 'tier'\?\)",
        ),
        ("rows.csv", b'id,request\n1,"x\n', "cannot be read"),
        ("rows.csv", b"id,request\n1,\xff\n", "cannot be read"),
        ("rows.csv", b"", "holds no rows"),
        ("rows.parquet", b"PAR1", "cannot be read"),
        ("rows.tsv", b"id\trequest\n1\tx\n", "missing key 'tier'"),
        ("nowhere.csv", None, "no dataset at"),
    ],
)
def test_what_is_no_table_of_rows_is_refused_with_its_line(
    tmp_path: Path, contract: Contract, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load_rows(tmp_path / name, contract)


def test_a_likeness_that_is_none_is_refused(tmp_path: Path) -> None:
    recipe = (ROOT / "train/mini.toml").read_text().replace("\ncontract =", "\nlikeness = 1.5\ncontract =")
    (tmp_path / "recipe.toml").write_text(recipe)
    with pytest.raises(ConfigError, match=r"\[data\] likeness must be between 0\.1 and 1"):
        Config.load(tmp_path / "recipe.toml")
