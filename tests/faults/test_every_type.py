"""Every Arrow type, nesting, codec and page version goes through and comes out as it was, for each reader."""

import datetime as dt
import decimal
import functools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.contract.contract import Contract
from batch.storage.backlog import Backlog
from batch.storage.output import assemble, encode_shard, output_schema
from batch.storage.writability import check_can_be_written

ROWS = 40
CODECS = ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]
DAY = dt.datetime(2026, 11, 2, 6, 9, 30)


def samples() -> Iterator[tuple[pa.DataType, list[Any]]]:
    """Each type with two values that are not null."""
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64()):
        yield kind, [-(2 ** (kind.bit_width - 1)), 7]
    for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()):
        yield kind, [2**kind.bit_width - 1, 7]
    yield from ((kind, [1.5, -0.25]) for kind in (pa.float32(), pa.float64()))
    yield pa.float16(), [np.float16(1.5), np.float16(-0.25)]
    yield pa.bool_(), [True, False]
    yield from ((kind, ["é", ""]) for kind in (pa.string(), pa.large_string()))
    yield from ((kind, [b"\xff\0", b""]) for kind in (pa.binary(), pa.large_binary()))
    yield pa.binary(3), [b"abc", b"\0\0\0"]
    for make, digits in ((pa.decimal32, 9), (pa.decimal64, 18), (pa.decimal128, 38), (pa.decimal256, 60)):
        yield make(digits, 2), [decimal.Decimal("-12.34"), decimal.Decimal("9" * (digits - 2) + ".99")]
    yield from ((kind, [dt.date(1, 1, 1), dt.date(9999, 12, 31)]) for kind in (pa.date32(), pa.date64()))
    for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")):
        yield kind, [dt.time(1, 2, 3), dt.time(23, 59, 59)]
    for unit in ("s", "ms", "us", "ns"):
        yield pa.timestamp(unit), [DAY, dt.datetime(1970, 1, 1)]
        yield pa.timestamp(unit, "Europe/Berlin"), [DAY.replace(tzinfo=dt.UTC)] * 2
        yield pa.duration(unit), [dt.timedelta(days=-1), dt.timedelta(seconds=5)]
    yield pa.null(), [None, None]


def array(kind: pa.DataType, values: list[Any]) -> pa.Array:
    return pa.array([[*values, None][row % 3] for row in range(ROWS)], kind)


def nestings(inner: pa.Array) -> Iterator[pa.Array]:
    """A column as it is and inside of each nested type; nulls at every level."""
    yield inner
    mask = pa.array([row % 5 == 4 for row in range(ROWS)])
    offsets = pa.array([min(row, ROWS - 1) for row in range(ROWS + 1)], pa.int32())
    yield pa.ListArray.from_arrays(offsets, inner, mask=mask)
    yield pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), inner, mask=mask)
    yield pa.StructArray.from_arrays([inner, pa.array(range(ROWS))], names=["a", "b"], mask=mask)
    yield pa.MapArray.from_arrays(offsets, pa.array([f"k{row}" for row in range(ROWS)]), inner)
    yield pa.FixedSizeListArray.from_arrays(pa.concat_arrays([inner, inner]), 2)
    pair = pa.StructArray.from_arrays([pa.ListArray.from_arrays(offsets, inner)], names=["list"])
    yield pa.ListArray.from_arrays(offsets, pair, mask=mask)


def columns() -> Iterator[pa.Array]:
    for kind, values in samples():
        yield from nestings(array(kind, values))
    words = pa.DictionaryArray.from_arrays(
        pa.array([row % 3 if row % 7 else None for row in range(ROWS)], pa.int8()),
        pa.array(["low", "mid", "high", "unused"]),
        ordered=True,
    )
    yield from (words, words.cast(pa.dictionary(pa.int16(), pa.string())))
    yield from (array(pa.string_view(), ["é", "x" * 40]), array(pa.binary_view(), [b"\xff", b"x" * 40]))
    ids = pa.array([uuid.UUID(int=row).bytes for row in range(ROWS)], pa.binary(16))
    yield from nestings(ids.cast(pa.uuid()))
    yield from nestings(pa.ExtensionArray.from_storage(pa.json_(), array(pa.string(), ['{"a":1}', "[]"])))
    yield pa.ExtensionArray.from_storage(pa.bool8(), array(pa.int8(), [1, 0]))
    yield pa.ExtensionArray.from_storage(pa.opaque(pa.int32(), "mood", "acme"), array(pa.int32(), [1, 2]))
    tensor = pa.fixed_shape_tensor(pa.int8(), (2,))
    pairs = pa.array([[row, row + 1] for row in range(ROWS)], tensor.storage_type)
    yield pa.ExtensionArray.from_storage(tensor, pairs)


@functools.cache
def table() -> pa.Table:
    named = {f"c{index} {str(each.type)[:40]}": each for index, each in enumerate(columns())}
    return pa.table({"id": range(ROWS), "request": ["find it"] * ROWS, **named})


def carried(source: Path, output: Path, contract: Contract) -> Backlog:
    """The input's columns through reading, two shards and the assembly, as a run does it; answers stay null."""
    backlog = Backlog.open(str(source), "id", "request")
    ids = backlog.check_ids()
    schema = output_schema(backlog.schema, contract)
    check_can_be_written(backlog.schema)
    shards = []
    for number, batch in enumerate(backlog.batches(size=ROWS // 2)):
        added = [pa.nulls(batch.num_rows, field.type) for field in list(schema)[batch.num_columns :]]
        shards.append(output.with_name(f"{output.name}.{number}"))
        whole = pa.Table.from_arrays([*batch.columns, *added], schema=schema)
        shards[-1].write_bytes(encode_shard(whole.replace_schema_metadata(None)))
    assemble(shards, str(output), schema, {}, expect=(backlog.rows, ids))
    return backlog


@pytest.mark.parametrize("page", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_type_comes_out_as_it_was(tmp_path: Path, contract: Contract, codec: str, page: str) -> None:
    """Read by pyarrow: types, values, field names; by Polars and DuckDB: what they see of the input they see of the
    output."""
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    options = {"compression": codec, "data_page_version": page, "row_group_size": 15}
    options["use_dictionary"] = page == "1.0"  # else a category's levels are not in the file
    pq.write_table(table(), source, **options)
    carried(source, output, contract)
    before, after = pq.ParquetFile(source).read(), pq.ParquetFile(output).read()
    for name in before.column_names:
        kind = before.schema.field(name).type
        if not pa.types.is_dictionary(kind):
            assert after.schema.field(name).equals(before.schema.field(name), check_metadata=True), name
        assert after[name].to_pylist() == before[name].to_pylist(), name
    for reader, unread in READERS.items():
        names = [
            name
            for name, kind in zip(before.column_names, table().schema.types, strict=True)
            if not unread(str(kind))
        ]
        seen = others_see(reader, source, names)
        assert len(seen) > 200, reader
        assert others_see(reader, output, list(seen)) == seen, reader


def polars_sees(path: Path, names: list[str]) -> dict[str, str]:
    found = pl.read_parquet(path, columns=names)
    return {name: str((found[name].dtype, found[name].to_list())) for name in names}


def duckdb_sees(path: Path, names: list[str]) -> dict[str, str]:
    found = duckdb.read_parquet(str(path)).select(*map(duckdb.ColumnExpression, names))
    columns = zip(*found.fetchall(), strict=True)
    return {name: str((kind, values)) for name, kind, values in zip(names, found.types, columns, strict=True)}


# Each reader with the types that it is not asked for: 60 digits Polars reads as whatever lies there, and date64, which
# pyarrow reads as date32, as a datetime.
READERS: dict[Callable[[Path, list[str]], dict[str, str]], Callable[[str], bool]] = {
    polars_sees: lambda kind: "decimal256" in kind or "date64" in kind,
    duckdb_sees: lambda kind: False,
}


def others_see(
    reader: Callable[[Path, list[str]], dict[str, str]], path: Path, names: list[str]
) -> dict[str, str]:
    """What a reader sees of those columns that it can read, by name."""
    try:
        return reader(path, names)
    except BaseException as error:  # Polars panics with one
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
    if len(names) == 1:
        return {}
    half = len(names) // 2
    return others_see(reader, path, names[:half]) | others_see(reader, path, names[half:])
