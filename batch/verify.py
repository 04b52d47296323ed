"""`batch-route verify OUTPUT [INPUT]`: is a finished output what its manifest says, and the input's rows?"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from batch.errors import InputError
from batch.storage.backlog import Backlog
from batch.storage.guard import guarded
from batch.storage.hashing import IdDigest
from batch.storage.location import Location
from batch.storage.manifest import is_folder, output_files, part_names, whole_manifest
from batch.storage.output import check_bytes, read_back
from batch.storage.parquet import ParquetSource
from batch.storage.schema import is_list, plain, unified
from batch.storage.store import store_at
from batch.storage.unify import ANNOTATIONS
from batch.storage.units import Cursor

ROWS = 4096  # compared at a time


def verify(output: str, source: str | None = None) -> int:
    """Read the whole of a finished output back: each file's bytes and pages, every row once, the ids in the
    input's order; with `source` also that every column of the input is there, row for row.

    Returns the number of rows. Raises `InputError` naming the first thing that is not so.
    """
    manifest = whole_manifest(output)
    told, job = manifest["output"], manifest["job"]
    expected = told.get("parts", []) if is_folder(output) else [told]
    files = output_files(output, manifest)
    _check_names(output, part_names(manifest))
    rows = _check_files(files, expected, told, job)
    if source is not None:
        backlog = Backlog.open(source, job["id_column"], job["text_column"])
        guarded(_compare, backlog, files, rows, job, what=backlog.source)  # nobody vouches for its pages
    return rows


def _check_names(output: str, names: list[str]) -> None:
    """In a folder lie the parts that the manifest names, each named once, and no other."""
    if len(set(names)) < len(names):
        raise InputError(f"{Location.of(output).name}: its manifest names a part twice")
    if not is_folder(output):
        return
    location = Location.of(output)
    folders = {name.rpartition("/")[0] for name in ("", *names)}  # others may hold unfinished work
    found = {name for folder in folders for name in store_at(location).names(folder)}
    found = {name for name in found if name.endswith(".parquet") and name.rpartition("/")[0] in folders}
    for what, differing in (("lacks", set(names) - found), ("also holds", found - set(names))):
        if differing:
            raise InputError(f"{location.name} {what} {min(differing)}; run batch-route again with --fresh")


def _check_files(
    files: list[Location], expected: list[dict[str, Any]], told: dict[str, Any], job: dict[str, Any]
) -> int:
    rows, ids = 0, IdDigest()
    for file, each in zip(files, expected, strict=True):
        check_bytes(file, each)
        found, digest = read_back(file, job["id_column"], ids)
        for fact, value in (("rows", found.rows), ("ids", digest)):
            if value != each[fact]:
                raise InputError(
                    f"{file.name} has other {fact} than its manifest says; run again with --fresh"
                )
        rows += found.rows
    if (rows, ids.hexdigest()) != (told["rows"], told["ids"]):
        raise InputError("the files' rows are not those of the whole that the manifest speaks of")
    if job["limit"] is None and ids.hexdigest() != job["ids"]:
        raise InputError("the output's ids are not those of the input that the manifest speaks of")
    return rows


def _compare(backlog: Backlog, files: list[Location], rows: int, job: dict[str, Any]) -> None:
    wanted = backlog.rows if job["limit"] is None else min(backlog.rows, job["limit"])
    if wanted != rows:
        raise InputError(f"{backlog.source} has {wanted} rows and the output {rows}: it is another's")
    names = backlog.schema.names
    carried = json.loads((backlog.schema.metadata or {}).get(ANNOTATIONS, b"{}"))
    opened = [ParquetSource.open(file) for file in files]
    if missing := [name for name in names if name not in opened[0].schema.names] if opened else []:
        raise InputError(f"{backlog.source} has a column {missing[0]!r} that the output lacks")

    def output_rows(_: int) -> Iterator[pa.RecordBatch]:
        for file in opened:
            yield from file.batches(columns=names)

    cursor, row = Cursor(output_rows), 0
    for batch in backlog.batches(size=ROWS, stop_row=rows):
        made = pa.Table.from_batches(cursor.read(row, row + batch.num_rows))
        for name in names:
            # an INT96, which is no longer one, reads back with a zone
            if not _alike(batch.column(name), made.column(name).combine_chunks(), name in carried):
                where = f"rows {row} to {row + batch.num_rows - 1}"
                raise InputError(f"column {name!r} of {backlog.source} is not the output's in {where}")
        row += batch.num_rows


def _alike(left: pa.Array, right: pa.Array, any_zone: bool = False) -> bool:
    """Whether values are the same, NaN like NaN, however they are coded; with `any_zone` whatever the time
    zone. Not by way of Python's values, which not all of Arrow's have.
    """
    left, right = plain(left), plain(right)
    if len(left) != len(right) or not left.is_valid().equals(right.is_valid()):
        return False
    if left.equals(right) or left.null_count == len(left):
        return True
    if types.is_struct(left.type) and types.is_struct(right.type):
        pairs = zip(left.flatten(), right.flatten(), strict=True)
        return left.type.names == right.type.names and all(_alike(*pair, any_zone) for pair in pairs)
    if _has_lengths(left.type) and _has_lengths(right.type):
        left, right = _as_list(left), _as_list(right)
        lengths = (pc.list_value_length(each).cast(pa.int64()) for each in (left, right))
        return next(lengths).equals(next(lengths)) and _alike(left.flatten(), right.flatten(), any_zone)
    return _scalars_alike(left, right, any_zone)


def _has_lengths(kind: pa.DataType) -> bool:
    return is_list(kind) or types.is_fixed_size_list(kind) or types.is_map(kind)


def _as_list(array: pa.Array) -> pa.Array:
    """A map as a list of its entries: Arrow tells no lengths of maps."""
    if not types.is_map(array.type):
        return array
    return array.cast(pa.list_(pa.struct([array.type.key_field, array.type.item_field])))


def _scalars_alike(left: pa.Array, right: pa.Array, any_zone: bool) -> bool:
    if any_zone and types.is_timestamp(left.type) and types.is_timestamp(right.type):
        left, right = (each.cast(pa.timestamp(each.type.unit)) for each in (left, right))
    kind = unified(left.type, right.type)
    if kind is None:
        return False
    try:
        left, right = left.cast(kind), right.cast(kind)
    except pa.ArrowInvalid:  # a time too far off for the finer unit
        return False
    if not types.is_floating(kind):
        return bool(left.equals(right))
    left, right = left.cast(pa.float64()), right.cast(pa.float64())  # nothing compares halves
    same = pc.or_(pc.equal(left, right), pc.and_(pc.is_nan(left), pc.is_nan(right)))
    return bool(pc.all(same).as_py())
