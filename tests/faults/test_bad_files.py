"""Files that nobody should have sent: one line and exit 2, no traceback, no signal, nothing written, bounded memory.

`tests/test_table.py` damages files for the reader; these go through the whole command. How each test was shown to
fail is in its docstring: the named change was made, the test failed, the change was undone.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.adapter.bundle import Bundle
from batch.errors import InputError
from batch.storage import backlog as backlog_module
from batch.storage.backlog import Backlog
from batch.storage.output import output_columns
from tests.batch.storage.test_output import requests, spoilt
from tests.batch.test_run import route
from tests.conftest import ROOT


def spoil(name: str, path: Path) -> None:
    table = requests(1000)
    match name:
        case "foreign schema":
            pq.write_table(pa.table({"a": [1], "b": ["x"]}), path)
        case "nested text":
            pq.write_table(pa.table({"id": [1], "request": [["x"]]}), path)
        case "two columns of one name":
            pq.write_table(pa.table([[1], ["a"], ["b"]], names=["id", "request", "request"]), path)
        case "bit flip":
            pq.write_table(table, path, write_page_checksum=True, use_dictionary=False, compression="none")
            path.write_bytes(path.read_bytes().replace(b"Lovelace 500", b"Lovelace 501", 1))
        case "list bomb":
            nothing = pa.ListArray.from_arrays(
                pa.array([0, 50_000_000], pa.int32()), pa.array(np.zeros(50_000_000, np.int8))
            )
            pq.write_table(pa.table({"id": [1], "request": ["x"], "list": nothing}), path)
        case _:
            spoilt(name, path)


BAD = [
    *("missing", "empty", "csv", "truncated", "headless", "footer", "encrypted", "encrypted, plain footer"),
    *(
        "foreign schema",
        "nested text",
        "two columns of one name",
        "bit flip",
        "list bomb",
    ),
]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_exit_2(tiny_bundle: Bundle, tmp_path: Path, name: str) -> None:
    """Fails, for `bit flip`, without `page_checksum_verification`; for the bombs, without `_safe_size`'s limit."""
    spoil(name, path := tmp_path / "in.parquet")
    (tmp_path / "out.parquet").write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    result = route(tiny_bundle, path, tmp_path / "out.parquet")
    assert result.exit_code == 2, result.output
    assert result.output.splitlines()[-1].startswith("Error: ") and result.output.count("\n") <= 2
    assert isinstance(result.exception, SystemExit) and "Lovelace" not in result.output
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "out.parquet").read_bytes() == b"old"


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
@pytest.mark.parametrize("rows", [0, 3])
def test_unusual_but_sound_files_are_routed(
    tiny_bundle: Bundle, tmp_path: Path, kind: pa.DataType, rows: int
) -> None:
    """No rows give an empty output with the full schema. Fails when `assemble` wants a shard."""
    texts = pa.array(["a dashboard", "a dashboard", None][:rows], pa.string())
    texts = texts.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else texts.cast(kind)
    pq.write_table(
        pa.table({"id": pa.array(range(rows), pa.int32()), "request": texts}), tmp_path / "in.parquet"
    )
    result = route(tiny_bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", "--max-error-rate", "1")
    assert result.exit_code == 0, result.output
    made = pq.read_table(tmp_path / "out.parquet")
    assert made.column_names == ["id", "request", *output_columns(tiny_bundle.contract)]
    assert made["error_code"].to_pylist() == [None, None, "null_text"][:rows]


def test_long_texts_are_read_in_bounded_memory(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """400 texts of 1 MB, each of which is too long. Fails without `SHARD_BYTES`: all would wait for one shard."""
    path = tmp_path / "in.parquet"
    with pq.ParquetWriter(
        path, schema := pa.schema([("id", pa.int64()), ("request", pa.string())]), compression="zstd"
    ) as writer:
        for row in range(400):
            writer.write_table(pa.table({"id": [row], "request": [f"{row}" + "x" * (1 << 20)]}, schema))
    line = [
        sys.executable,
        "-m",
        "batch",
        str(path),
        str(tmp_path / "out.parquet"),
        "--adapter",
        str(tiny_bundle.path),
    ]
    job, peak = (
        subprocess.Popen(
            [*line, "--engine", "replay"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ),
        0,
    )
    while job.poll() is None:
        for line_ in Path(f"/proc/{job.pid}/status").read_text().splitlines():
            if line_.startswith("VmHWM"):
                peak = max(peak, int(line_.split()[1]) >> 10)
        time.sleep(0.02)
    assert job.communicate()[1].splitlines()[-1].startswith("Error: 400 of 400 rows are errors")
    assert job.returncode == 3 and 0 < peak < 600, f"{peak} MB"


def test_a_batch_of_nested_texts_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary value of 64 kB in each of 2,000 lists: 128 MB, let through, in batches of 16 MB. Fails when only
    top-level texts are looked at."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * (1 << 16)]))
    table = pa.table(
        {
            "id": range(2000),
            "request": ["x"] * 2000,
            "list": pa.ListArray.from_arrays(pa.array(range(2001), pa.int32()), values),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", store_schema=False, dictionary_pagesize_limit=1 << 30)
    backlog = Backlog.open(str(tmp_path / "in.parquet"), "id", "request", [])
    rows = 0
    for batch in backlog.batches():
        assert batch.nbytes < 17 << 20
        rows += batch.num_rows
    assert rows == 2000
    monkeypatch.setattr(backlog_module, "MAX_ROWS", 1999)
    with pytest.raises(InputError, match="more than 1999"):
        Backlog.open(str(tmp_path / "in.parquet"), "id", "request", [])
