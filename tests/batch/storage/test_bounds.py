"""What the reader's process may hold, and what it still has to read within that: many rows, many ids that occur twice, many
wide columns."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import InputError
from batch.storage import guard, hashing
from batch.storage.backlog import HASH_BYTES, Backlog, read_through
from batch.storage.guard import guarded
from batch.storage.location import Location
from batch.storage.parquet import ParquetSource
from batch.storage.sizes import DECODED_BYTES

PIECE = 8 << 20
LEFT = 96 << 20
held: list[object] = []  # in the reader's process


def fill() -> None:
    """Take all that the process may hold, up to `LEFT`; addresses count, so no memory is touched."""
    try:
        while True:
            held.append(np.empty(PIECE, np.int8))
    except MemoryError:
        del held[-LEFT // PIECE :]


@pytest.fixture
def crowded() -> Iterator[None]:
    """A reader that may hold 96 MiB more, so that 16 million rows stand for 500 million."""
    guarded(fill, what="memory")
    yield
    guard.stop()


def texts(rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["find it"]))


def written(path: Path, ids: pa.Array) -> Backlog:
    pq.write_table(pa.table({"id": ids, "request": texts(len(ids))}), path, row_group_size=1 << 20)
    return Backlog.open(str(path), "id", "request")


@pytest.mark.usefixtures("crowded")
def test_the_rows_that_are_promised_have_room_for_their_hashes(tmp_path: Path) -> None:
    rows = 16 << 20
    backlog = written(tmp_path / "in.parquet", pa.array(np.arange(rows)))
    assert backlog.rows * HASH_BYTES > LEFT
    assert len(backlog.check_ids()) == 64


@pytest.mark.usefixtures("crowded")
def test_an_input_that_was_exported_twice_is_refused_for_its_ids(tmp_path: Path) -> None:
    """Whose ids would not all fit into memory until the first one comes again."""
    ids = pa.array([f"REQ-2026-{number:032}" for number in range(600_000)])
    backlog = written(tmp_path / "in.parquet", pa.concat_arrays([ids, ids]))
    with pytest.raises(InputError, match=r"rows \d+ and \d+ have the same id; make ids unique"):
        backlog.check_ids()


@pytest.mark.parametrize("compared", [1, 2, 3, 100])
@pytest.mark.parametrize("where", range(5))
def test_equal_ids_are_found_wherever_their_hashes_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: int, where: int
) -> None:
    monkeypatch.setattr(hashing, "COMPARED", compared)
    ids = list(range(6))
    assert read_through(written(tmp_path / "in.parquet", pa.array(ids)))
    ids[where + 1] = ids[where]
    with pytest.raises(InputError, match=f"rows {where} and {where + 1} have the same id"):
        read_through(written(tmp_path / "in.parquet", pa.array(ids)))


@pytest.mark.parametrize("dictionary", [False, True])
def test_many_wide_columns_are_read_in_small_batches(tmp_path: Path, dictionary: bool) -> None:
    """4,096 rows of 30 texts of 3.9 KB, 480 MB, in one row group of which most is compressed away."""
    path = tmp_path / "in.parquet"
    text = pa.array([f"{row:05d} " + "lorem ipsum " * 325 for row in range(4096)])
    columns = {f"c{index}": text for index in range(30)}
    table = pa.table({"id": np.arange(4096), "request": texts(4096), **columns})
    pq.write_table(table, path, compression="zstd", use_dictionary=dictionary)
    (rows,) = ParquetSource.open(Location.of(path)).safe_rows
    assert DECODED_BYTES / 2 < rows * 30 * len(text[0].as_py()) <= DECODED_BYTES
    Backlog.open(str(path), "id", "request").check_ids()


@pytest.mark.parametrize(
    ("column", "width"),
    [
        (pa.array(np.arange(10_000)), 8),
        (pa.array([[{"a": 1, "b": "x" * 4000}] * 10] * 100), 40_000),
    ],
    ids=["numbers", "nested"],
)
def test_batches_follow_the_width_of_a_row(tmp_path: Path, column: pa.Array, width: int) -> None:
    """Narrow rows come in large batches, and of a list each value counts."""
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({f"c{index}": column for index in range(20)}), path)
    (rows,) = ParquetSource.open(Location.of(path)).safe_rows
    assert DECODED_BYTES / 1.5 < rows * 20 * width <= DECODED_BYTES
