"""`batch-route verify OUTPUT [INPUT]`: is a finished output what its manifest says, and the input's rows?"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from batch.errors import InputError, StorageError
from batch.storage.backlog import Backlog
from batch.storage.hashing import IdDigest
from batch.storage.location import Location
from batch.storage.manifest import is_folder, output_files, part_names, whole_manifest
from batch.storage.output import prove
from batch.storage.parquet import ParquetSource
from batch.storage.schema import conformed, plain
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
        _compare(source, files, rows, job)
    return rows


def _check_names(output: str, names: list[str]) -> None:
    """In a folder lie the parts that the manifest names, each named once, and no other."""
    if len(set(names)) < len(names):
        raise InputError(f"{Location.of(output).name}: its manifest names a part twice")
    if not is_folder(output):
        return
    location = Location.of(output)
    folders = {name.rpartition("/")[0] for name in ("", *names)}  # others may hold unfinished work
    found = {name for name in store_at(location).names("") if name.endswith(".parquet")}
    found = {name for name in found if name.rpartition("/")[0] in folders}
    for what, differing in (("lacks", set(names) - found), ("also holds", found - set(names))):
        if differing:
            raise InputError(f"{location.name} {what} {min(differing)}; run batch-route again with --fresh")


def _check_files(
    files: list[Location], expected: list[dict[str, Any]], told: dict[str, Any], job: dict[str, Any]
) -> int:
    rows, ids = 0, IdDigest()
    for file, each in zip(files, expected, strict=True):
        try:
            found = prove(file, job["id_column"], ids)
        except (StorageError, FileNotFoundError) as error:
            raise InputError(f"{file.name} cannot be read: {error}") from error
        for fact in ("bytes", "rows", "sha256", "ids"):
            if getattr(found, fact) != each[fact]:
                raise InputError(
                    f"{file.name} has other {fact} than its manifest says; run again with --fresh"
                )
        rows += found.rows
    if (rows, ids.hexdigest()) != (told["rows"], told["ids"]):
        raise InputError("the files' rows are not those of the whole that the manifest speaks of")
    if job["limit"] is None and ids.hexdigest() != job["ids"]:
        raise InputError("the output's ids are not those of the input that the manifest speaks of")
    return rows


def _compare(source: str, files: list[Location], rows: int, job: dict[str, Any]) -> None:
    backlog = Backlog.open(source, job["id_column"], job["text_column"])
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
            column = made.column(name).combine_chunks()
            if name in carried:  # as the input's: an INT96, which is no longer one, reads back with a zone
                with contextlib.suppress(pa.ArrowInvalid):
                    column = conformed(column, batch.column(name).type)
            if not _alike(batch.column(name), column):
                where = f"rows {row} to {row + batch.num_rows - 1}"
                raise InputError(f"column {name!r} of {backlog.source} is not the output's in {where}")
        row += batch.num_rows


def _alike(left: pa.Array, right: pa.Array) -> bool:
    """Whether values are the same, NaN like NaN; dictionaries may differ in how they are coded."""
    left, right = plain(left), plain(right)
    return bool(left.equals(right)) or repr(left.to_pylist()) == repr(right.to_pylist())
