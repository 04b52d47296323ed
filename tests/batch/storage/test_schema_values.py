"""What Arrow's values go through on their way loses nothing of them: nested ones that files have in different types, and
views of strings and bytes, for which Arrow has few kernels."""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.adapter.bundle import Bundle
from batch.errors import InputError
from batch.storage.backlog import Backlog
from batch.storage.schema import conformed, plain, taken
from tests.batch.test_run import route

TIME = 34_200_123_456_789  # nanoseconds
UUIDS = pa.array([b"\0" * 16, b"\xff" * 16], pa.binary(16))
ODD = {
    "time": pa.array([TIME, None], pa.time64("ns")),
    "instant": pa.array([1_600_000_000_123_456_789, None], pa.timestamp("ns", "UTC")),
    "date after 9999": pa.array([10_000_000, None], pa.int32()).cast(pa.date32()),
    "instant after 9999": pa.array([400_000_000_000_000, None], pa.timestamp("ms")),
    "long duration": pa.array([2**62, None], pa.int64()).cast(pa.duration("s")),
    "not UTF-8": pa.array([b"\xff", None]).view(pa.string()),
    "UUID": pa.ExtensionArray.from_storage(pa.uuid(), UUIDS),
    "JSON": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", None])),
}


def opened(source: Path) -> Backlog:
    backlog = Backlog.open(str(source), "id", "request")
    backlog.check_ids()
    return backlog


@pytest.mark.parametrize("odd", ODD)
def test_values_beside_one_that_is_null_throughout_stay(tmp_path: Path, odd: str) -> None:
    """Such a one is null to Arrow in one file and a string in the next."""
    for index, note in enumerate((pa.nulls(2), pa.array(["x", None]))):
        struct = pa.StructArray.from_arrays([note, ODD[odd]], ["note", "odd"])
        ids = [f"{index}-0", f"{index}-1"]
        pq.write_table(
            pa.table({"id": ids, "request": ["a", "b"], "x": struct}), tmp_path / f"{index}.parquet"
        )
    read = [batch["x"] for batch in opened(tmp_path).batches()]
    assert pa.concat_arrays([plain(each.field("note")) for each in read]).to_pylist() == [
        None,
        None,
        "x",
        None,
    ]
    for each in read:
        each.validate()
        assert each.type.field("odd").type.equals(ODD[odd].type)
        assert plain(each.field("odd")).equals(plain(ODD[odd]))


def test_polars_times_in_structs_stay(tmp_path: Path) -> None:
    for index, note in enumerate((None, "x")):
        row = pl.DataFrame({"id": [str(index)], "request": ["find it"]})
        call = pl.struct(note=pl.lit(note), at=pl.Series([TIME]).cast(pl.Time))
        row.with_columns(call=call).write_parquet(tmp_path / f"{index}.parquet")
    read = pa.Table.from_batches(opened(tmp_path).batches())["call"].combine_chunks()
    assert read.field("at").cast(pa.int64()).to_pylist() == [TIME, TIME]


GIVEN, WANTED = (
    pa.struct([pa.field("at", pa.time64("ns"), nullable=False), ("note", kind), ("n", number)])
    for kind, number in ((pa.null(), pa.int8()), (pa.string(), pa.int64()))
)
ITEM = {"at": TIME, "note": None, "n": 1}
ROWS = [[ITEM], None, [None, ITEM], [], [{**ITEM, "n": None}]]
PAIRS = [[ITEM, None], None, [None, ITEM], [ITEM, ITEM], None]
MAPS = [None if row is None else [(str(index), item) for index, item in enumerate(row)] for row in ROWS]
LISTS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view]
LAYOUTS: dict[str, tuple[pa.DataType, pa.DataType, list[Any]]] = {
    "struct": (GIVEN, WANTED, [ITEM, None, ITEM, ITEM, None]),
    "map": (pa.map_(pa.string(), GIVEN), pa.map_(pa.large_string(), WANTED), MAPS),
    "fixed": (pa.list_(GIVEN, 2), pa.list_(WANTED, 2), PAIRS),
    "fixed, other's not": (pa.list_(GIVEN, 2), pa.large_list(WANTED), PAIRS),
    "in a struct": (
        pa.struct([("l", pa.list_(GIVEN))]),
        pa.struct([("l", pa.large_list(WANTED))]),
        [None, *({"l": row} for row in ROWS[1:])],
    ),
    **{f"{each.__name__}": (each(GIVEN), each(WANTED), ROWS) for each in LISTS},
    **{f"{each.__name__}, other's not": (each(GIVEN), pa.list_(WANTED), ROWS) for each in LISTS},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_nested_values_is_rebuilt(layout: str) -> None:
    """Whole, in slices, and where all lists are empty."""
    given, wanted, values = LAYOUTS[layout]
    array, expected = pa.array(values, given), pa.array(values, wanted)
    for start, end in ((0, 5), (1, 5), (2, 4), (1, 2), (3, 4), (5, 5)):
        made = conformed(array[start:end], wanted)
        made.validate(full=True)
        assert made.type.equals(wanted) and made.equals(expected[start:end])
    assert conformed(pa.nulls(3), wanted).equals(pa.nulls(3, wanted))


def test_lists_of_extension_values_may_be_empty() -> None:
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), UUIDS)
    array = pa.ListArray.from_arrays(pa.array([0, 0, 2], pa.int32()), uuids)
    for end, sizes in ((1, [0]), (2, [0, 2])):
        made = conformed(array[:end], pa.large_list(pa.uuid()))
        assert pa.compute.list_value_length(made).to_pylist() == sizes


# Views

VIEWS = [pa.string_view(), pa.binary_view(), pa.json_(pa.string_view())]


def views(kind: pa.DataType, *values: str | None) -> pa.Array:
    storage = pa.array(values, pa.large_string())
    return conformed(storage.cast(pa.binary()) if kind.equals(pa.binary_view()) else storage, kind)


@pytest.mark.parametrize("kind", VIEWS, ids=str)
def test_views_can_be_computed_with(kind: pa.DataType) -> None:
    array = views(kind, "a", None, "a")
    assert plain(array).unique().null_count == 1
    assert taken(array, pa.array([2, 1])).equals(views(kind, "a", None))


@pytest.mark.parametrize("kind", VIEWS[:2], ids=str)
def test_ids_that_are_views_are_checked_and_reported(
    tmp_path: Path, tiny_bundle: Bundle, kind: pa.DataType
) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": views(kind, "r-1", "r-1"), "request": ["a", "b"]}), source)
    with pytest.raises(InputError, match="rows 0 and 1 have the same id"):
        opened(source)
    pq.write_table(pa.table({"id": views(kind, "r-1", "r-2"), "request": ["a", "b"]}), source)
    result = route(tiny_bundle, source, tmp_path / "out.parquet", "--report", str(tmp_path / "report.html"))
    assert result.exit_code == 0, result.output
    assert {"r-1", "r-2"} <= set((tmp_path / "report.html").read_text().replace("<", ">").split(">"))
    assert pq.read_schema(tmp_path / "out.parquet").field("id").type.equals(kind)


def test_adapters_can_be_named_by_views(tmp_path: Path, tiny_bundle: Bundle) -> None:
    names = views(pa.string_view(), None, "nobody")
    table = pa.table({"id": ["1", "2"], "request": ["a", "b"], "team": names})
    pq.write_table(table, tmp_path / "in.parquet")
    options = ("--adapter-column", "team", "--max-error-rate", "1")
    result = route(tiny_bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", *options)
    assert result.exit_code == 0, result.output
    made = pq.read_table(tmp_path / "out.parquet")
    assert made["status"].to_pylist() == ["ok", "error"] and made.schema.field("team").type.equals(names.type)
