"""Labelled rows out of spreadsheets and warehouses: the same rows as JSON lines give."""

import csv
import datetime
import decimal
import json
import math
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


SIZES = """
name = "sizes"
[prompt]
system = "{fields}"
[[fields]]
name = "size"
type = "integer"
labels = { 1 = "", 2 = "" }
[[fields]]
name = "floor"
type = "label"
optional = true
labels = { "x" = "", "y" = "" }
"""


def parquet(path: Path, **columns: pa.Array) -> Path:
    given = {
        "id": ["a", "b"],
        "request": ["One thing.", "Something else."],
        "size": [1, 2],
        "floor": ["x", "y"],
    }
    pq.write_table(pa.table({**given, **columns}), path / "rows.parquet")
    return path / "rows.parquet"


@pytest.fixture
def sizes(tmp_path: Path) -> Contract:
    (tmp_path / "contract.toml").write_text(SIZES)
    return Contract.load(tmp_path / "contract.toml")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0, math.inf]), "1: size is 1.0"),
        (
            pa.array([decimal.Decimal(1), None]),
            r"1: size holds a value that JSON does not have, 1: .*Decimal",
        ),
        (pa.array([datetime.date(2024, 1, 2)] * 2), r"1: size holds .*, 2024-01-02: .* date "),
        (pa.array([0, 1], pa.timestamp("us")), "1: size holds .*, 1970-01-01 00:00:00: .*datetime"),
        (pa.array([0, 1], pa.duration("us")), r"1: size holds .*, 0:00:00: .*timedelta"),
        (pa.array([b"1", b"2"]), r"1: size holds .*, b'1': .*bytes"),
        (pa.array([math.nan, 1.0]), r"1: missing key 'size' \(no such column, or an empty or NaN cell\)"),
        (
            pa.array([0, 1 << 60], pa.date64()),
            r" rows 1 to 2: column 'size' \(date32.*save the column as texts",
        ),
    ],
)
def test_a_cell_that_no_answer_can_hold_is_refused_by_row_and_field(
    tmp_path: Path, sizes: Contract, column: pa.Array, message: str
) -> None:
    with pytest.raises(DatasetError, match=rf"rows\.parquet:{message}"):
        load_rows(parquet(tmp_path, size=column), sizes)


def test_pandas_missing_value_is_an_empty_cell(tmp_path: Path, sizes: Contract) -> None:
    nan = pa.array([math.nan] * 2)
    found = load_rows(parquet(tmp_path, floor=nan, probe=nan, facts=nan), sizes)
    assert [(dict(row.answer), row.note, row.facts) for row in found] == [
        ({"size": 1, "floor": None}, None, None),
        ({"size": 2, "floor": None}, None, None),
    ]


def test_a_likeness_that_is_none_is_refused(tmp_path: Path) -> None:
    recipe = (ROOT / "train/mini.toml").read_text().replace("\ncontract =", "\nlikeness = 1.5\ncontract =")
    (tmp_path / "recipe.toml").write_text(recipe)
    with pytest.raises(ConfigError, match=r"\[data\] likeness must be between 0\.1 and 1"):
        Config.load(tmp_path / "recipe.toml")
