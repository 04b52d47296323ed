"""Files that differ as exports do are one backlog; what contradicts is refused with the column and both types."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.contract.contract import Contract
from batch.errors import InputError
from batch.scoring.scorer import read_texts
from batch.storage.backlog import Backlog
from batch.storage.output import output_schema, parquet_writer
from batch.storage.sizes import BATCH_BYTES
from batch.storage.unify import SPARK, carried_metadata


def files(folder: Path, *columns: Any, **options: Any) -> Path:
    """A file a column `x`, each of two rows."""
    for index, column in enumerate(columns):
        fields = {"id": [f"{index}-0", f"{index}-1"], "request": ["find it"] * 2}
        pq.write_table(pa.table({**fields, "x": column}), folder / f"{index}.parquet", **options)
    return folder


def opened(source: Path) -> Backlog:
    backlog = Backlog.open(str(source), "id", "request")
    backlog.check_ids()
    return backlog


def rows(backlog: Backlog) -> pa.Table:
    return pa.Table.from_batches(backlog.batches(), backlog.schema)


def words(kind: pa.DataType) -> pa.Array:
    array = pa.array(["a", None])
    return array.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else array.cast(kind)


STRINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("other", [*STRINGS, pa.dictionary(pa.int32(), pa.large_string())], ids=str)
@pytest.mark.parametrize("one", STRINGS, ids=str)
def test_kinds_of_strings_are_one(tmp_path: Path, one: pa.DataType, other: pa.DataType) -> None:
    backlog = opened(files(tmp_path, words(one), words(other)))
    assert rows(backlog)["x"].to_pylist() == ["a", None] * 2


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.int8(), pa.int64(), pa.int64()),
        (pa.uint8(), pa.int8(), pa.int16()),
        (pa.uint32(), pa.int64(), pa.int64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.decimal128(5, 2), pa.decimal128(20, 2), pa.decimal128(20, 2)),
        (pa.null(), pa.list_(pa.string()), pa.list_(pa.string())),
        (pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("us")),
        (pa.timestamp("us", "UTC"), pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC")),
        (pa.list_(pa.null()), pa.list_(pa.string()), pa.list_(pa.string())),
        (pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.large_list(pa.int64())),
        (pa.list_(pa.int32(), 2), pa.list_(pa.int64(), 2), pa.list_(pa.int64(), 2)),
        (pa.list_(pa.int32(), 2), pa.list_(pa.int8(), 3), pa.list_(pa.int32())),
        (pa.list_(pa.int32(), 2), pa.large_list(pa.int8()), pa.large_list(pa.int32())),
        (pa.struct([("a", pa.int8())]), pa.struct([("a", pa.int32())]), pa.struct([("a", pa.int32())])),
        (pa.map_(pa.string(), pa.int8()), pa.map_(pa.string(), pa.int32()), pa.map_(pa.string(), pa.int32())),
    ],
    ids=str,
)
def test_widths_are_one(tmp_path: Path, one: pa.DataType, other: pa.DataType, both: pa.DataType) -> None:
    for order in ((one, other), (other, one)):
        backlog = opened(files(tmp_path, *(pa.nulls(2, kind) for kind in order)))
        assert backlog.schema.field("x").type.equals(both)
        assert rows(backlog)["x"].null_count == 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.int64(), pa.string()),
        (pa.int64(), pa.float64()),
        (pa.uint64(), pa.int64()),
        (pa.decimal128(5, 2), pa.decimal128(5, 3)),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
        (pa.struct([("a", pa.int8())]), pa.struct([("b", pa.int8())])),
        (pa.list_(pa.string()), pa.string()),
        (pa.binary(), pa.string()),
    ],
    ids=str,
)
def test_what_loses_something_is_refused(tmp_path: Path, one: pa.DataType, other: pa.DataType) -> None:
    files(tmp_path, pa.nulls(2, one), pa.nulls(2, other))
    with pytest.raises(
        InputError, match=r"column 'x.*' is .* in .*1\.parquet and .* before it; make them alike"
    ):
        opened(tmp_path)


WIDE = {f"a_child_of_a_long_struct_{index}": pa.string() for index in range(20)}
MANY = len(WIDE)


def wide(*last: tuple[str, pa.DataType]) -> pa.DataType:
    return pa.struct([*WIDE.items(), *last])


@pytest.mark.parametrize(
    ("one", "other", "path", "before", "here"),
    [
        (wide(("size", pa.string())), wide(("size", pa.int64())), "x.size", "string", "int64"),
        (wide(("size", pa.string())), wide(), "x.size", "string", "missing"),
        (wide(), wide(("size", pa.int64())), "x.size", "missing", "int64"),
        (
            *(wide(*pairs) for pairs in ([("a", pa.int8()), ("b", pa.int8())], [("b", pa.int8()), ("a", pa.int8())])),
            *("x", f"a struct whose child {MANY} is 'a'", f"a struct whose child {MANY} is 'b'"),
        ),
        (
            pa.list_(wide(("m", pa.map_(pa.string(), wide(("z", pa.date32())))))),
            pa.large_list(wide(("m", pa.map_(pa.string(), wide(("z", pa.bool_())))))),
            *("x[].m[value].z", "date32[day]", "bool"),
        ),
        (pa.map_(pa.int8(), pa.int8()), pa.map_(pa.string(), pa.int8()), "x[key]", "int8", "string"),
        (wide(("a", wide())), wide(("a", pa.list_(pa.int8()))), "x.a", "struct<", "list<element: int8>"),
    ],
)  # fmt: skip
def test_what_differs_deep_in_a_column_is_named(
    tmp_path: Path, one: pa.DataType, other: pa.DataType, path: str, before: str, here: str
) -> None:
    files(tmp_path, pa.nulls(2, one), pa.nulls(2, other))
    with pytest.raises(InputError) as refused:
        opened(tmp_path)
    told = str(refused.value)
    assert told.startswith(f"column {path!r} is {here} in {tmp_path}/1.parquet and {before}")
    assert len(told) < 300 + len(str(tmp_path))


def test_a_value_deep_in_a_column_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """Not the first child that differs, whose values fit."""
    kinds = [wide(("n", number), ("at", pa.list_(time)))
             for number, time in ((pa.int8(), pa.timestamp("ms")), (pa.int64(), pa.timestamp("us")))]  # fmt: skip
    files(tmp_path, pa.array([None, {"n": 1, "at": [2**60]}], kinds[0]), pa.nulls(2, kinds[1]))
    with pytest.raises(InputError, match=r"column 'x\.at\[\]' is timestamp\[ms\] and .* timestamp\[us\] "):
        opened(tmp_path)


def test_a_timestamp_that_does_not_fit_the_finer_unit_is_refused(tmp_path: Path) -> None:
    files(tmp_path, pa.array([2**60, 0], pa.timestamp("ms")), pa.nulls(2, pa.timestamp("us")))
    kinds = r"is timestamp\[ms\] and does not fit into the other files' timestamp\[us\]"
    with pytest.raises(InputError, match=rf"0\.parquet: column 'x' {kinds} .*; make them alike"):
        opened(tmp_path)


LISTS = [[1], None, [2, 3], []]


@pytest.mark.parametrize("view", [pa.list_view(pa.int16()), pa.large_list_view(pa.int16())], ids=str)
def test_list_views_are_lists_to_the_other_files(tmp_path: Path, view: pa.DataType) -> None:
    """Arrow's own cast gives other values, or offsets that end in an error."""
    inside = pa.struct([("a", view)])
    for name, kind, values in (
        ("x", view, LISTS),
        ("nested", pa.list_(view), [[each] for each in LISTS]),
        ("inside", inside, [{"a": each} for each in LISTS]),
    ):
        other = pa.list_(pa.int64())
        wide = {view: other, inside: pa.struct([("a", other)])}.get(kind, pa.list_(other))
        for number, array in enumerate((pa.array(values, kind), pa.array(values, wide))):
            ids = [f"{number}-{row}" for row in range(4)]
            table = pa.table({"id": ids, "request": ["find it"] * 4, name: array})
            pq.write_table(table, tmp_path / f"{number}.parquet")
        assert rows(opened(tmp_path))[name].to_pylist() == values * 2


@pytest.mark.parametrize("width", [65, 1 << 20])
def test_wide_bytes_of_fixed_length_count(tmp_path: Path, width: int) -> None:
    """A dictionary stores one such value once, however many rows repeat it."""
    count = (3 * BATCH_BYTES) // width
    column = pa.array([b"x" * width] * count, pa.binary(width))
    table = pa.table({"id": range(count), "request": ["find it"] * count, "x": column})
    pq.write_table(table, tmp_path / "in.parquet")
    batches = list(opened(tmp_path / "in.parquet").batches(size=1 << 20))
    assert sum(batch.num_rows for batch in batches) == count
    assert max(batch.nbytes for batch in batches) <= 1.3 * BATCH_BYTES


def test_order_and_nullability_differ_freely(tmp_path: Path) -> None:
    required = pa.schema(
        [("id", pa.string()), pa.field("x", pa.int8(), nullable=False), ("request", pa.string())]
    )
    pq.write_table(pa.table([["a"], [1], ["find it"]], schema=required), tmp_path / "0.parquet")
    pq.write_table(
        pa.table({"request": ["find it"], "id": ["b"], "x": pa.array([None], pa.int8())}),
        tmp_path / "1.parquet",
    )
    backlog = opened(tmp_path)
    assert backlog.schema.names == ["id", "x", "request"] and backlog.schema.field("x").nullable
    assert rows(backlog).to_pydict() == {"id": ["a", "b"], "x": [1, None], "request": ["find it"] * 2}


def levels(*values: str, codes: Sequence[int] = (0, 0)) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int16()), pa.array(values), ordered=True)


def test_levels_are_kept_in_their_order(tmp_path: Path) -> None:
    """Also where a file knows only some of them, and where each row group has its own dictionary."""
    files(tmp_path, levels("low", "high", codes=(1, 0)), levels("low", "mid", "high", "never", codes=(2, 1)))
    backlog = opened(tmp_path)
    for batch in backlog.batches():
        assert batch["x"].type.ordered
        assert batch["x"].dictionary.to_pylist() == ["low", "mid", "high", "never"]
    assert rows(backlog)["x"].to_pylist() == ["high", "low", "high", "mid"]
    assert backlog.notes == ()


def test_levels_that_contradict_are_ordered_no_longer_and_that_is_told(tmp_path: Path) -> None:
    backlog = opened(files(tmp_path, levels("a", "b", codes=(1, 0)), levels("b", "a", codes=(1, 0))))
    assert not backlog.schema.field("x").type.ordered
    assert rows(backlog)["x"].to_pylist() == ["b", "a", "a", "b"]
    assert backlog.notes == ("column 'x' is no longer ordered: its levels come in more than one order",)


def test_an_order_that_not_every_file_has_is_lost_and_that_is_told(tmp_path: Path) -> None:
    backlog = opened(files(tmp_path, levels("a", "b", codes=(1, 0)), pa.array(["b", "c"])))
    assert rows(backlog)["x"].to_pylist() == ["b", "a", "b", "c"]
    assert backlog.notes == ("column 'x' is no longer ordered: not every file has its levels",)


@pytest.mark.parametrize("values", [(b"low", b"high"), (b"\xff", b"ok")], ids=str)
def test_an_order_stays_beside_nulls_and_whatever_the_levels_bytes(
    values: tuple[bytes, ...], tmp_path: Path
) -> None:
    """Pandas writes a column that is None throughout as one of Arrow's nulls; nobody checks a text's UTF-8."""
    texts = pa.StringArray.from_buffers(2, *pa.array(values).buffers()[1:])
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int32()), texts, ordered=True)
    for name, order in {"before": (pa.nulls(2), column), "behind": (column, column, pa.nulls(2))}.items():
        (tmp_path / name).mkdir()
        backlog = opened(files(tmp_path / name, *order))
        found = rows(backlog)["x"]
        assert found.type.ordered and found.null_count == 2 and backlog.notes == ()
        assert all(chunk.dictionary.equals(texts) for chunk in found.chunks)
        assert {*found.cast(pa.binary()).to_pylist()} == {None, *values}


@pytest.mark.parametrize("count", [3, 3000])
def test_no_value_is_lost_where_the_levels_are_not_in_the_file(tmp_path: Path, count: int) -> None:
    """A plain page has no dictionary: pyarrow makes one of the values of each batch, in the order that they come."""
    names = [f"level {index}" for index in range(count)]
    column = levels(*names, codes=range(count - 1, -1, -1))
    table = pa.table({"id": range(count), "request": column, "x": column})
    pq.write_table(table, tmp_path / "in.parquet", use_dictionary=False)
    backlog = opened(tmp_path / "in.parquet")
    found = pa.Table.from_batches(backlog.batches(size=1000), backlog.schema)
    assert found["x"].to_pylist() == names[::-1] == found["request"].to_pylist()


def test_no_value_is_lost_where_a_row_group_has_two_dictionaries(tmp_path: Path) -> None:
    """The second one's values lie in plain pages."""
    halves = [levels("low", codes=(0, 0)), levels("low", "high", codes=(1, 0))]
    ids = iter(range(4))
    parts = [pa.table({"id": [next(ids), next(ids)], "request": ["a", "b"], "x": half}) for half in halves]
    pq.write_table(pa.concat_tables(parts), tmp_path / "in.parquet")
    assert rows(opened(tmp_path / "in.parquet"))["x"].to_pylist() == ["low", "low", "high", "low"]


def test_two_orders_in_turn_are_two(tmp_path: Path) -> None:
    """However often they come."""
    pair = [levels("low", "mid", "high"), levels("low", "high")]
    files(tmp_path, *(pair[index % 2] for index in range(60)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batch.storage.unify.MOST_ORDERS", 5)
        backlog = opened(tmp_path)
    assert backlog.schema.field("x").type.ordered and backlog.notes == ()


def test_levels_too_large_for_a_dictionary_page_are_ordered_no_longer(tmp_path: Path) -> None:
    """Parquet's writer would put the output's values into plain pages."""
    column = levels("a" * (1 << 19), "b" * (1 << 20), codes=(1, 0))
    backlog = opened(files(tmp_path, column))
    assert not backlog.schema.field("x").type.ordered
    assert backlog.notes == (
        "column 'x' is no longer ordered: its levels are larger than a dictionary's page",
    )
    assert rows(backlog)["x"].to_pylist() == column.to_pylist()


def test_spark_is_told_the_types_of_the_new_columns() -> None:
    strings = {"type": "array", "elementType": "string", "containsNull": True}
    types = {
        "tier": (pa.string(), "string"),
        "risk": (pa.bool_(), "boolean"),
        "count": (pa.int64(), "long"),
        "labels": (pa.list_(pa.string()), strings),
        "label_scores": (pa.list_(pa.float32()), {**strings, "elementType": "float"}),
        "score": (pa.float32(), "float"),
        "day": (pa.date32(), "date"),
        "small": (pa.int16(), "short"),
        "exact": (pa.float64(), "double"),
        "coded": (pa.dictionary(pa.int32(), pa.large_string()), "string"),
    }
    empty = pa.schema([], {SPARK: b'{"type": "struct", "fields": []}'})
    fields = [pa.field(name, kind) for name, (kind, _) in types.items()]
    told = json.loads(carried_metadata(empty, fields)[SPARK])["fields"]
    assert {each["name"]: each["type"] for each in told} == {name: kind for name, (_, kind) in types.items()}
    assert all(each["nullable"] for each in told)


@pytest.mark.parametrize("metadata", ['{"fields": {}}', '{"fields": ""}', "[" * 200_000, "[]", "{", b"\xff"])
def test_metadata_that_spark_did_not_write_is_left_out(metadata: str | bytes) -> None:
    schema = pa.schema([("id", pa.string())], {SPARK: metadata})
    assert SPARK not in carried_metadata(schema, [pa.field("tier", pa.string())])


def test_metadata_of_a_type_that_is_not_listed_is_left_out() -> None:
    """Spark tells it from Parquet's; another's word for it would be wrong."""
    schema = pa.schema([("at", pa.timestamp("us"))], {SPARK: b'{"type": "struct", "fields": []}'})
    assert SPARK not in carried_metadata(schema, [])


def test_metadata_stays_and_what_would_hide_the_answers_does_not(tmp_path: Path, contract: Contract) -> None:
    spark = {
        "type": "struct",
        "fields": [
            {"name": n, "type": "string", "nullable": True, "metadata": {}} for n in ("id", "request")
        ],
    }
    told = {
        "pandas": "{}",
        "huggingface": "{}",
        "geo": '{"version":"1.1.0"}',
        SPARK.decode(): json.dumps(spark),
    }
    field = pa.field("id", pa.string(), metadata={"PARQUET:field_id": "7", "comment": "the ticket's"})
    schema = pa.schema([field, ("request", pa.string())], {**told, "parquet.avro.schema": "{}"})
    pq.write_table(pa.table([["a"], ["b"]], schema=schema), tmp_path / "in.parquet")
    backlog = opened(tmp_path)
    made = output_schema(backlog.schema, contract)
    assert {made.metadata[key.encode()].decode() for key in ("pandas", "huggingface", "geo")} == {
        "{}",
        told["geo"],
    }
    names = [each["name"] for each in json.loads(made.metadata[SPARK])["fields"]]
    assert names == made.names
    assert made.field("id").metadata == field.metadata
    assert b"parquet.avro.schema" not in made.metadata
    assert backlog.notes == (
        "metadata 'parquet.avro.schema' is left out: it lists the columns without the output's new ones",
    )


CRS84, METRES = (
    {"id": {"authority": authority, "code": code}, "name": "x"}
    for authority, code in (("OGC", "CRS84"), ("EPSG", 25832))
)


def geo_files(folder: Path, *columns: dict[str, Any] | None, rows: Sequence[int] = (2, 2, 2)) -> Path:
    """A file for each description of its column `x`."""
    folder.mkdir()
    for index, column in enumerate(columns):
        about = {"encoding": "WKB", "geometry_types": ["Point"]} | (column or {})
        geo = {"version": "1.1.0", "primary_column": "x", "columns": {"x": about}}
        table = pa.table({"id": [f"{index}-0", f"{index}-1"], "request": ["find it"] * 2, "x": [b"p", b"q"]})
        told = {} if column is None else {"geo": json.dumps(geo)}
        pq.write_table(table[: rows[index]].replace_schema_metadata(told), folder / f"{index}.parquet")
    return folder


@pytest.mark.parametrize(
    ("columns", "joined", "dropped"),
    [
        (({"bbox": [0, 0, 1, 1]},), {"bbox": [0, 0, 1, 1], "geometry_types": ["Point"]}, None),
        (({"bbox": [0, 0, 1, 1]},) * 2, {"bbox": [0, 0, 1, 1], "geometry_types": ["Point"]}, None),
        (({"bbox": [0, 0, 1, 1]}, {"bbox": [5, 5, 9, 9]}), {"geometry_types": ["Point"]}, "bbox"),
        (({"bbox": [float("nan")] * 4}, {"bbox": [5, 5, 9, 9]}), {"geometry_types": ["Point"]}, "bbox"),
        (({"bbox": [0, 0, 1, 1]}, {}), {"geometry_types": ["Point"]}, "bbox"),
        (({}, {"bbox": [0, 0, 1, 1]}), {"geometry_types": ["Point"]}, "bbox"),
        (({"bbox": [0, 0, 1, 1]}, None), {"geometry_types": []}, "bbox"),
        ((None, {"bbox": [0, 0, 1, 1]}), {"geometry_types": []}, "bbox"),
        (({"orientation": "counterclockwise"}, {}), {"geometry_types": ["Point"]}, "orientation"),
        (
            ({"geometry_types": ["Polygon"]}, {"geometry_types": ["Point", "Polygon"]}),
            {"geometry_types": ["Point", "Polygon"]},
            None,
        ),
        (({}, {"geometry_types": []}), {"geometry_types": []}, None),
        (({}, {"crs": CRS84}), {"geometry_types": ["Point"]}, None),
        (({"crs": METRES}, {"crs": METRES | {"name": "y"}}), {"crs": METRES, "geometry_types": ["Point"]}, None),
    ],
)  # fmt: skip
def test_what_geoparquet_says_of_the_rows_is_so_of_all_files(
    tmp_path: Path, columns: Sequence[dict[str, Any] | None], joined: dict[str, Any], dropped: str | None
) -> None:
    backlog = opened(geo_files(tmp_path / "in", *columns))
    geo = json.loads((backlog.schema.metadata or {})[b"geo"])
    assert geo["primary_column"] == "x" and geo["columns"]["x"] == {"encoding": "WKB"} | joined
    assert [note for note in backlog.notes if f"the {dropped} of column 'x'" in note] == [*backlog.notes]
    assert bool(backlog.notes) == bool(dropped)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"crs": METRES}, {}, "crs OGC:CRS84 in {}/1.parquet and EPSG:25832 in {}/0.parquet"),
        ({"crs": None}, {"crs": CRS84}, "crs OGC:CRS84 in {}/1.parquet and null in {}/0.parquet"),
        ({}, {"edges": "spherical"}, "edges spherical in {}/1.parquet and planar in {}/0.parquet"),
    ],
)
def test_coordinates_that_mean_different_things_are_refused(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], told: str
) -> None:
    source = geo_files(tmp_path / "in", one, other)
    with pytest.raises(InputError) as refused:
        opened(source)
    assert f"column 'x' have the {told.format(source, source)}; " in str(refused.value)
    empty = opened(geo_files(tmp_path / "empty", other, one, rows=(0, 2)))  # which says nothing of any row
    assert json.loads((empty.schema.metadata or {})[b"geo"])["columns"]["x"].get("crs", "") == one.get(
        "crs", ""
    )


def test_a_geo_that_is_not_geoparquets_is_left_out_where_the_files_differ(tmp_path: Path) -> None:
    for index, value in enumerate(("{", '{"columns": {"x": []}}', "[" * 100_000)):
        source = geo_files(tmp_path / f"{index}", {}, {})
        table = pq.read_table(source / "1.parquet")
        pq.write_table(table.replace_schema_metadata({"geo": value}), source / "1.parquet")
        backlog = opened(source)
        assert b"geo" not in (backlog.schema.metadata or {})
        assert "metadata 'geo' is left out" in backlog.notes[0]


# Types of Parquet that Arrow has none for

DUCKDB = "interval 1 day iv, timetz '01:02:03+00' tz, [interval 1 month] ivs, {'t': timetz '01:02:03+00', 'n': 1} s"
# (fields of a SchemaElement as they are encoded, what pyarrow's listing of the Parquet schema says)
MARKS = {
    "ENUM": ({6: (5, b"\x08"), 10: (12, b"\x4c\0\0")}, "(Enum)"),
    "BSON": ({6: (5, b"\x28"), 10: (12, b"\xdc\0\0")}, "(BSON)"),
    "ENUM of old": ({6: (5, b"\x08")}, "(Enum)"),
}


def written(backlog: Backlog, path: Path) -> None:
    with path.open("wb") as sink, parquet_writer(sink, backlog.schema) as writer:
        writer.write_table(rows(backlog))


def test_intervals_and_times_with_zone_stay(tmp_path: Path) -> None:
    duckdb.sql(f"copy (select 'a' id, 'find it' request, {DUCKDB}) to '{tmp_path}/in.parquet'")
    written(opened(tmp_path / "in.parquet"), tmp_path / "out.parquet")
    seen = [duckdb.read_parquet(f"{tmp_path}/{name}.parquet") for name in ("in", "out")]
    assert seen[0].types == seen[1].types
    assert str(seen[0].fetchall()) == str(seen[1].fetchall())


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("nested", [False, True])
def test_marks_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, nested: bool) -> None:
    """Put into a footer by hand; pyarrow lists them of the input and of the output."""
    fields, listed = MARKS[mark]
    values = pa.array([b"DreamMaker", None])
    column = pa.array([[b"DreamMaker"], None]) if nested else values
    pq.write_table(
        pa.table({"id": ["a", "b"], "request": ["x"] * 2, "x": column}), tmp_path / "plain.parquet"
    )
    mark_footer(tmp_path / "plain.parquet", tmp_path / "in.parquet", fields)
    assert listed in str(pq.ParquetFile(tmp_path / "in.parquet").schema)
    backlog = opened(tmp_path / "in.parquet")
    written(backlog, tmp_path / "out.parquet")
    out = pq.ParquetFile(tmp_path / "out.parquet")
    assert listed in str(out.schema)
    assert out.read()["x"].to_pylist() == column.to_pylist()
    assert b"batch_route.annotations" not in (out.metadata.metadata or {})
    assert pl.read_parquet(tmp_path / "out.parquet").height == 2
    if not nested and mark.startswith("ENUM"):
        Backlog.open(str(tmp_path / "in.parquet"), "id", "x")  # its column is one of texts
        assert read_texts(next(backlog.batches()), "x") == (["DreamMaker", None], {})


@pytest.mark.parametrize(("unit", "converted"), [("ms", b"\x12"), ("us", b"\x14")])
@pytest.mark.parametrize("nested", [False, True])
def test_timestamps_without_a_logical_type_stay(
    tmp_path: Path, unit: str, converted: bytes, nested: bool
) -> None:
    """As parquet-mr wrote them before 2.4, and Avro's converter: without zone to DuckDB and Polars."""
    times = (
        pa.array(["2026-11-02T06:09:00.250", None]).cast(pa.timestamp(unit)).cast(pa.timestamp(unit, "UTC"))
    )
    column = pa.StructArray.from_arrays([times], ["at"]) if nested else times
    table = pa.table({"id": ["a", "b"], "request": ["x"] * 2, "x": column})
    with pq.ParquetWriter(tmp_path / "plain.parquet", table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"whose": "mine"})
    mark_footer(tmp_path / "plain.parquet", tmp_path / "in.parquet", {6: (5, converted)}, without=[10])
    written(opened(tmp_path / "in.parquet"), tmp_path / "out.parquet")
    seen = [duckdb.read_parquet(f"{tmp_path}/{name}.parquet") for name in ("in", "out")]
    assert seen[0].types == seen[1].types and "TIME ZONE" not in str(seen[0].types)
    assert str(seen[0].fetchall()) == str(seen[1].fetchall())
    assert pq.read_table(tmp_path / "out.parquet")["x"].to_pylist() == column.to_pylist()
    polars = [pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("in", "out")]
    assert polars[0].schema == polars[1].schema and "time_zone=None" in str(polars[0].schema["x"])
    assert polars[0].equals(polars[1])
    made, read = (pq.read_schema(tmp_path / f"{name}.parquet") for name in ("out", "in"))
    assert made.equals(read) and made.metadata == {b"whose": b"mine"}


def mark_footer(
    source: Path, target: Path, fields: dict[int, tuple[int, bytes]], without: Sequence[int] = ()
) -> None:
    from batch.storage import footer

    data = source.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    start, end, elements = footer._elements(data[-8 - size : -8])
    elements[-1] |= fields
    for field in without:
        del elements[-1][field]
    tail = data[-8 - size : -8]
    tail = tail[: start + 1] + b"".join(map(footer._encoded, elements)) + tail[end:]
    target.write_bytes(data[: -8 - size] + tail + len(tail).to_bytes(4, "little") + b"PAR1")


@pytest.mark.parametrize("kind", [pl.Int128, pl.UInt128, pl.List(pl.Int128)])
def test_whole_numbers_of_128_bits_are_refused_with_the_cast_to_write(tmp_path: Path, kind: Any) -> None:
    """Only Polars writes them; Arrow has no such type."""
    path, numbers = tmp_path / "in.parquet", [[1], [2]] if isinstance(kind, pl.List) else [1, 2]
    plain = pl.DataFrame({"id": ["a", "b"], "request": ["x", "y"], "uuid": [b"0" * 16, b"1" * 16]})
    table = plain.with_columns(pl.Series("n", numbers, dtype=kind))
    table.write_parquet(path)
    with pytest.raises(
        InputError, match=r"in\.parquet: column 'n' is of .*in Polars, write it with \.cast\(pl\.Int64\)"
    ):
        opened(path)
    for cast in (pl.Int64, pl.String):
        narrow = pl.List(cast) if isinstance(kind, pl.List) else cast
        table.with_columns(pl.col("n").cast(narrow)).write_parquet(path)
        assert rows(opened(path)).num_rows == 2


def test_a_mark_that_not_every_file_has_is_told(tmp_path: Path) -> None:
    files(tmp_path, pa.array([b"a", b"b"]), pa.array([b"a", b"b"]))
    mark_footer(tmp_path / "1.parquet", tmp_path / "1.parquet", MARKS["ENUM"][0])
    assert opened(tmp_path).notes == ("column 'x' is no longer marked ENUM: not every file marks it so",)


def test_spark_timestamps_of_old_are_exact_and_of_the_same_kind(tmp_path: Path) -> None:
    """INT96 is an instant to Spark and a TIMESTAMP to DuckDB, up to the year 9999 and inside of nested values; so is
    what is written (Spark 4.3, asked by hand: `timestamp` both times)."""
    ends = pa.array(["9999-12-31T23:59:59.999999", "0001-01-01T00:00:00", None, "2026-11-02T06:09:00"])
    ends = ends.cast(pa.timestamp("us"))
    table = pa.table(
        {"id": list("abcd"), "request": ["x"] * 4, "at": ends, "all": [[end] for end in ends.to_pylist()]}
    )
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, source, use_deprecated_int96_timestamps=True, store_schema=False)
    assert "int96" in str(pq.ParquetFile(source).schema)
    backlog = opened(source)
    written(backlog, output)
    made = pq.ParquetFile(output).read()
    assert made["at"].cast(pa.timestamp("us")).equals(pa.chunked_array([ends]))
    assert rows(backlog)["all"].to_pylist() == table["all"].to_pylist()
    assert (
        duckdb.read_parquet(str(output)).select(duckdb.ColumnExpression("at")).types
        == duckdb.read_parquet(str(source)).select(duckdb.ColumnExpression("at")).types
    )
    assert backlog.notes == ()
    again = opened(output).files[0].batches(schema=backlog.schema)
    assert pa.Table.from_batches(again).to_pylist() == rows(backlog).to_pylist()
