"""`batch-route show`: a few rows as a person reads them, whatever is in them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch.adapter.bundle import Bundle
from batch.cli import main
from batch.show import show
from tests.batch.storage.examples import edited
from tests.batch.storage.examples import manifest as manifest_bytes
from tests.batch.test_run import backlog, route


def test_rows_with_their_answers_and_no_more_lines_than_a_terminal_is_wide(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    source, output = backlog(tmp_path / "in.parquet", rows=300), tmp_path / "out"
    assert route(tiny_bundle, source, output).exit_code == 0
    rows = show(str(output), 4)
    assert [list(row)[:2] for row in rows] == [["id", "request"]] * 4
    assert {"tier", "risk", "score", "status"} <= set(rows[0])
    assert not {"tier_score", "adapter", "error"} & set(rows[0])
    told = CliRunner(env={"COLUMNS": "80"}).invoke(main, ["show", str(output), "-n", "4"])
    assert told.exit_code == 0 and told.output.count("request  ") == 4
    assert max(map(len, told.output.splitlines())) <= 80
    ids = [row["id"] for row in rows]
    assert ids == [row["id"] for row in show(str(output), 4)] and len(set(ids)) == 4


def test_with_a_prefix_an_error_and_a_text_that_a_terminal_would_obey(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    table = pa.table({"key": [7, 8], "body": ["\x1b[31m[bold]Find it.", " "], "score": ["a", "b"]})
    pq.write_table(table, tmp_path / "in.parquet")
    options = ("--id-column", "key", "--text-column", "body", "--prefix", "r_", "--max-error-rate", "1")
    assert route(tiny_bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", *options).exit_code == 0
    first, second = show(str(tmp_path / "out.parquet"), 9)
    assert first["key"] == "7" and first["body"] == r"\x1b[31m[bold]Find it." and "r_score" in first
    assert second["r_status"] == "error" and second["r_error_code"] == "empty_text" and "score" not in second


def test_bytes_that_are_no_text(tiny_bundle: Bundle, tmp_path: Path) -> None:
    texts = pa.array([b"Find it.", b"caf\xe9 machine broken"], pa.binary())
    request = pa.Array.from_buffers(pa.string(), 2, texts.buffers())
    table = pa.table({"id": pa.array([b"\xff1", b"a2"]), "request": request})
    pq.write_table(table, tmp_path / "in.parquet")
    done = route(tiny_bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", "--max-error-rate", "1")
    assert done.exit_code == 0, done.output
    first, second = show(str(tmp_path / "out.parquet"), 2)
    assert (first["id"], second["id"]) == ("ff31", "a2")
    assert second["request"] == r"caf\xe9 machine broken" and second["error_code"] == "invalid_utf8"


@pytest.mark.parametrize("damage", ["none", "no digest", "prefix", "columns"])
def test_what_is_not_finished_is_refused(damage: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "out.parquet")
    manifest, told = tmp_path / "out.parquet.manifest.json", "its manifest is damaged or was edited"
    if damage == "none":
        told = "has no manifest"
    elif damage == "no digest":
        manifest.write_text('{"job": {}, "run": {}, "output": {"sha256": "0"}}')
    else:
        manifest.write_bytes(manifest_bytes())
        edited(manifest, *(("job", "prefix") if damage == "prefix" else ("output", "columns")))
    refused = CliRunner().invoke(main, ["show", str(tmp_path / "out.parquet")])
    assert refused.exit_code == 2 and refused.output.startswith("Error: ") and refused.output.count("\n") == 1
    assert told in refused.output
