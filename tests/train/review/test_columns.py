"""Outputs whose columns have any of Arrow's types: what people are asked, and what is written back."""

import datetime
import decimal
import json
import math
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from batch.contract.contract import Contract
from batch.errors import InputError
from tests.conftest import ROOT
from tests.train.review.conftest import Output
from train.cli import main
from train.dataset import load_rows
from train.review.queue import Item, Selection, read_items

CONTRACT = ("--contract", str(ROOT / "data/contract.toml"))
ROWS = 3
UUIDS = [uuid.UUID(int=number) for number in range(ROWS)]
IDS: dict[str, tuple[pa.Array, list[str]]] = {
    "large strings": (pa.array(["a", "b", "c"], pa.large_string()), ["a", "b", "c"]),
    "string views": (pa.array(["a", "b", "c"], pa.string_view()), ["a", "b", "c"]),
    "a dictionary": (pa.array(["a", "b", "c"]).dictionary_encode(), ["a", "b", "c"]),
    "JSON": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", "2", "3"])), ["1", "2", "3"]),
    "bytes": (pa.array([b"a", b"b", b"\xff\x01"]), ["a", "b", "ff01"]),
    "bytes of one length": (pa.array([b"\xfea", b"\xfeb", b"\xfec"], pa.binary(2)), ["fe61", "fe62", "fe63"]),
    "UUIDs": (pa.array([each.bytes for each in UUIDS], pa.uuid()), [str(each) for each in UUIDS]),
    "unsigned": (pa.array([2**64 - 1, 0, 1], pa.uint64()), [str(2**64 - 1), "0", "1"]),
    "decimals": (pa.array([decimal.Decimal(n) for n in range(3)], pa.decimal128(38, 0)), ["0", "1", "2"]),
    "long decimals": (
        pa.array([decimal.Decimal(10**50 + n) for n in range(3)], pa.decimal256(76, 0)),
        [str(10**50 + n) for n in range(3)],
    ),
}


@pytest.fixture
def table(output: Output) -> pa.Table:
    return pq.read_table(output(ROWS))


def put(table: pa.Table, folder: Path, **columns: pa.Array) -> Path:
    for name, column in columns.items():
        at = table.schema.get_field_index(name)
        table = table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
    pq.write_table(table, folder / "odd.parquet")
    return folder / "odd.parquet"


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def items(path: Path, contract: Contract) -> list[Item]:
    return read_items(path, contract, Selection(order="queue"), "seed")


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_type_are_one_text_everywhere(
    table: pa.Table, contract: Contract, tmp_path: Path, kind: str
) -> None:
    """As the page has it, as `candidates` writes it, and as `apply-reviews` finds the row again."""
    ids, texts = IDS[kind]
    path = put(table, tmp_path, id=ids)
    assert [item.id for item in items(path, contract)] == texts
    chosen = command("candidates", path, *CONTRACT)
    assert {json.loads(line)["id"] for line in chosen.output.splitlines()} == set(texts)
    gold = json.loads((ROOT / "data/v2/train.jsonl").read_text().splitlines()[7])
    labels = tmp_path / "labels.jsonl"
    request = table.column("request")[2].as_py()
    decision = {**gold, "id": texts[2], "request": request, "decision": "label", "reviewer": "ann"}
    labels.write_text(json.dumps(decision) + "\n")
    done = command("apply-reviews", path, labels, tmp_path / "final.parquet", *CONTRACT)
    assert done.exit_code == 0, done.output
    final = pq.read_table(tmp_path / "final.parquet")
    assert final.column("answered_by").to_pylist() == ["model", "model", "ann"]
    assert final.column("id").equals(pq.read_table(path).column("id"))


def test_parquet_ids_of_bytes_and_uuids_are_the_same_texts_in_a_dataset(
    table: pa.Table, contract: Contract, tmp_path: Path
) -> None:
    names = ["request", *(field.name for field in contract.fields)]
    for kind in ("bytes", "UUIDs"):
        ids, texts = IDS[kind]
        pq.write_table(table.select(names).append_column("id", ids), tmp_path / "rows.parquet")
        assert [row.id for row in load_rows(tmp_path / "rows.parquet", contract)] == texts


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": pa.array([1.0, 2.0, 3.0])}, "column 'id' holds double, not strings, bytes or whole numbers"),
        ({"id": pa.array([[1], [2], [3]])}, "column 'id' holds list<element: int64>, not strings"),
        ({"id": pa.array([datetime.date(2026, 1, n) for n in (1, 2, 3)])}, "column 'id' holds date32"),
        ({"id": pa.nulls(3)}, "column 'id' holds null, not"),
        ({"id": pa.array(["a", None, "b"])}, "column 'id' holds an id twice, or none"),
        ({"id": pa.array(["a", "a", "b"])}, "column 'id' holds an id twice"),
        (
            {"request": pa.nulls(3)},
            "column 'request' holds null, not strings; name another with --text-column",
        ),
        ({"request": pa.array([1, 2, 3])}, "column 'request' holds int64, not strings"),
        ({"request": pa.array([["a"], ["b"], ["c"]])}, "column 'request' holds list"),
        ({"score": pa.array(["0.5"] * 3)}, "column 'score' holds String, not numbers"),
        ({"score": pa.array([[0.5]] * 3)}, r"column 'score' holds List\(Float64\), not numbers"),
        (
            {"tier": pa.array([decimal.Decimal(1)] * 3)},
            "has no column 'tier' with texts, numbers or booleans",
        ),
        ({"tier": pa.array([datetime.date(2026, 1, 1)] * 3)}, "has no column 'tier' with texts"),
        ({"error_code": pa.array([1, 2, 3])}, "column 'error_code' holds Int64, not texts"),
    ],
)
def test_a_column_of_another_type_is_refused_in_a_line(
    table: pa.Table, contract: Contract, tmp_path: Path, columns: dict[str, pa.Array], message: str
) -> None:
    path = put(table, tmp_path, **columns)
    with pytest.raises(InputError, match=message):
        items(path, contract)
    result = command("candidates", path, *CONTRACT)
    assert result.exit_code == 2 and len(result.output.splitlines()) == 1, result.output


@pytest.mark.parametrize("name", ["adapter", "triage", "status"])
def test_a_mark_that_is_no_text_is_refused_by_review(table: pa.Table, tmp_path: Path, name: str) -> None:
    path = put(table, tmp_path, **{name: pa.array([1, 2, 3])})
    result = command("review", path, "--labels", tmp_path / "labels.jsonl", *CONTRACT)
    assert result.exit_code == 2 and result.output == (
        f"Error: {path}: column {name!r} holds Int64, not texts; give an output of batch-route\n"
    )


def test_an_audit_needs_a_triage_column(table: pa.Table, contract: Contract, tmp_path: Path) -> None:
    path = put(table.drop_columns("triage"), tmp_path)
    with pytest.raises(InputError, match="has no column 'triage' to draw `auto` rows by; leave out --audit"):
        read_items(path, contract, Selection(audit=0.5), "seed")


ODD: dict[str, dict[str, pa.Array]] = {
    "columns of nulls": {"error": pa.nulls(3), "tier_score": pa.nulls(3), "risk_second": pa.nulls(3)},
    "a probability without its value": {"tier_second_score": pa.array([0.1] * 3)},
    "other people's columns": {
        "far": pa.array([0, 1, 1 << 60], pa.date64()),
        "map": pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())),
        "struct": pa.array([{"a": [1]}] * 3),
        "view": pa.array([b"\xff"] * 3, pa.binary_view()),
        "nan": pa.array([math.nan] * 3),
    },
    "half a float": {"score": pa.array([0.5] * 3, pa.float16())},
    "bytes": {"tier": None, "status": pa.array([b"ok"] * 3), "triage": pa.array([b"human"] * 3)},
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_but_means_the_same_is_read(
    table: pa.Table, contract: Contract, tmp_path: Path, case: str
) -> None:
    plain = items(put(table, tmp_path), contract)
    columns: dict[str, Any] = dict(ODD[case])
    if "tier" in columns:
        columns["tier"] = table.column("tier").cast(pa.binary())
    path = put(table, tmp_path, **columns)
    found = items(path, contract)
    assert [(item.id, item.answer) for item in found] == [(item.id, item.answer) for item in plain]
    assert command("candidates", path, *CONTRACT).exit_code == 0


def test_a_request_that_is_not_utf8_does_not_hide_the_others(
    table: pa.Table, contract: Contract, tmp_path: Path
) -> None:
    texts = pa.array([b"An app \xff.", b"Another.", b"A third."])
    column = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    found = items(put(table, tmp_path, request=column), contract)
    assert [item.request for item in found] == ["An app \\xff.", "Another.", "A third."]


def test_nan_in_a_score_is_no_score_and_no_change(
    table: pa.Table, contract: Contract, tmp_path: Path
) -> None:
    path = put(table, tmp_path, score=pa.array([math.nan, 0.5, 0.6]), theirs=pa.array([[math.nan]] * 3))
    assert [item.scores.get("score") for item in items(path, contract)] == [None, 0.5, 0.6]
    labels = tmp_path / "labels.jsonl"
    gold = json.loads((ROOT / "data/v2/train.jsonl").read_text().splitlines()[0])
    asked = {"id": "r0", "request": table.column("request")[0].as_py()}
    labels.write_text(json.dumps({**gold, **asked, "decision": "label", "reviewer": "ann"}) + "\n")
    done = command("apply-reviews", path, labels, tmp_path / "final.parquet", *CONTRACT)
    assert done.exit_code == 0, done.output


def test_answers_that_a_column_has_no_room_for_are_refused(table: pa.Table, tmp_path: Path) -> None:
    path = put(table, tmp_path, tier=pa.array([1, 2, 3]))
    labels = tmp_path / "labels.jsonl"
    gold = json.loads((ROOT / "data/v2/train.jsonl").read_text().splitlines()[0])
    asked = {"id": "r0", "request": table.column("request")[0].as_py()}
    labels.write_text(json.dumps({**gold, **asked, "decision": "label", "reviewer": "ann"}) + "\n")
    done = command("apply-reviews", path, labels, tmp_path / "final.parquet", *CONTRACT)
    assert done.exit_code == 2 and "column 'tier' holds int64, which has no room for" in done.output
    assert not (tmp_path / "final.parquet").exists()


def test_an_output_that_is_a_folder(output: Output, contract: Contract, tmp_path: Path) -> None:
    folder = tmp_path / "routed"
    folder.mkdir()
    whole = pq.read_table(output(5))
    for number, (start, rows) in enumerate([(0, 2), (2, 3)]):
        pq.write_table(whole.slice(start, rows), folder / f"part-{number}.parquet")
    (folder / "manifest.json").write_text("{}")
    assert [item.id for item in items(folder, contract)] == ["r0", "r1", "r2", "r3", "r4"]
    assert len(command("candidates", folder, *CONTRACT).output.splitlines()) == 5
