"""One schema for the files of a backlog: what they agree on, what each column is carried as, what cannot
stay.
"""

import dataclasses
import json
from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa

from batch.contract.json_text import parse_json
from batch.errors import InputError
from batch.storage.differences import differing
from batch.storage.geo import GEO, joined_geo
from batch.storage.listing import Found
from batch.storage.parquet import ParquetSource
from batch.storage.schema import (
    INTEGERS,
    is_list,
    is_ordered,
    is_string,
    merged_levels,
    names_alike,
    unified_field,
    values_type,
)

ANNOTATIONS = (
    b"batch_route.annotations"  # key of a schema's metadata, in this program only: the writer takes it out
)
SPARK = b"org.apache.spark.sql.parquet.row.metadata"
SPARK_TYPES = {
    **dict(zip(INTEGERS, ("byte", "short", "integer", "long"), strict=True)),
    pa.bool_(): "boolean",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.date32(): "date",
}
# Their readers take these for the whole schema, and would not see the output's new columns.
STALE = (b"parquet.avro.schema", b"avro.schema", b"iceberg.schema", b"parquet.proto.descriptor")
OWN = b"batch_route."
MOST_ORDERS = 1000  # that are compared; a sound column has one, or one a file
LEVEL_BYTES = 1 << 20  # of a larger dictionary Parquet's writer makes plain pages, and they have no levels


@dataclasses.dataclass(frozen=True)
class Unified:
    """The input's columns as the run carries them, partition keys last."""

    schema: pa.Schema
    levels: dict[str, pa.Array]  # of ordered dictionaries
    notes: tuple[str, ...]  # what does not stay as it was
    marked: dict[str, list[str]]  # Parquet's annotations beyond Arrow's types, by column: all files have them


def unify(files: Sequence[ParquetSource], found: Sequence[Found]) -> Unified:
    """Raises `InputError` naming the file, the column and both types where files contradict one another."""
    fields = {field.name: field for field in files[0].schema}
    for file in files:
        _check_names(file, files[0])
        for field in file.schema:
            known = fields[field.name]
            both = unified_field(known, field)
            if both is None:
                path, here, before = differing(field.name, field.type, known.type)
                kinds = f"is {here} in {file.location.name} and {before} before it"
                raise InputError(f"column {path!r} {kinds}; make them alike")
            fields[field.name] = both
    keys = _partition_fields(found, list(fields))
    notes: list[str] = []
    levels = {}
    for name, field in fields.items():
        if not any(is_ordered(file.schema.field(name).type) for file in files):
            continue
        merged, why = None, "not every file has its levels"
        if is_ordered(field.type):
            merged, why = _levels(files, field)
            fields[name] = field.with_type(
                pa.dictionary(pa.int32(), field.type.value_type, merged is not None)
            )
        if merged is not None:
            levels[name] = merged
            continue
        notes.append(f"column {name!r} is no longer ordered: {why}")
    metadata = _metadata(files, notes)
    if kept := _annotations(files, fields, notes):
        metadata[ANNOTATIONS] = json.dumps(kept).encode()
    marked = {name: files[0].annotation_names.get(name, []) for name in kept}
    return Unified(pa.schema([*fields.values(), *keys], metadata or None), levels, tuple(notes), marked)


def _levels(files: Sequence[ParquetSource], field: pa.Field) -> tuple[pa.Array | None, str]:
    """One order of the column's levels, as the output's dictionary can hold it; None where there is none, and
    why.
    """
    found: dict[tuple[object, ...], pa.Array] = {}  # by the values
    last, contradict = None, "its levels come in more than one order"
    ordered = (file for file in files if is_ordered(file.schema.field(field.name).type))  # others hold nulls
    for levels in (levels for file in ordered for levels in file.levels(field.name)):
        if last is not None and last.equals(levels):
            continue
        if levels.nbytes > LEVEL_BYTES:
            return None, "its levels are larger than a dictionary's page"
        found[tuple(levels.cast(pa.large_binary()).to_pylist())] = levels.cast(field.type.value_type)
        last = levels
        if len(found) > MOST_ORDERS:
            return None, contradict
    merged = merged_levels([*found.values()]) if found else pa.array([], field.type.value_type)
    return merged, contradict


def _check_names(file: ParquetSource, first: ParquetSource) -> None:
    names, wanted = file.schema.names, first.schema.names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{file.location.name} has two columns {twice!r}; rename one")
    for one, other, lacking in ((wanted, names, file), (names, wanted, first)):
        if missing := [name for name in one if name not in set(other)]:
            there = first if lacking is file else file
            pair = f"{lacking.location.name} has no column {missing[0]!r}, which {there.location.name} has"
            raise InputError(f"{pair}; make them alike")


def _partition_fields(found: Sequence[Found], names: list[str]) -> list[pa.Field]:
    """The partition keys of the folders as columns: whole numbers and dates where all values are such, else
    strings.
    """
    keys = dict.fromkeys(key for key, _ in found[0].partitions)
    fields = []
    for each in found:
        own = [key for key, _ in each.partitions]
        if twice := [key for index, key in enumerate(own) if names_alike([key], own[:index])]:
            raise InputError(f"{each.location.name} lies twice under the key {twice[0]!r}; rename one")
        if set(own) != set(keys):
            pair = (
                f"{each.location.name} lies under the keys {own}, {found[0].location.name} under {list(keys)}"
            )
            raise InputError(f"{pair}; give every file the same partition keys")
    for key in keys:
        if alike := names_alike([key], names):
            raise InputError(
                f"partition key {key!r} is also a column, {alike[1]!r}, of the files; rename one"
            )
        values = [dict(each.partitions)[key] for each in found]
        fields.append(pa.field(key, _partition_type([value for value in values if value is not None])))
    return fields


def _partition_type(values: Sequence[str]) -> pa.DataType:
    if values and all(_is_whole(value) for value in values):
        return INTEGERS[-1]
    return pa.date32() if values and all(_is_date(value) for value in values) else pa.string()


def _is_whole(value: str) -> bool:
    """Whether `value` is a number of 64 bits that reads back as it is written: `01` is not."""
    digits = value.removeprefix("-")
    return (
        digits.isascii() and digits.isdigit() and str(int(value)) == value and -(2**63) <= int(value) < 2**63
    )


def _is_date(value: str) -> bool:
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def partition_value(text: str | None, kind: pa.DataType) -> pa.Scalar:
    """A partition's value as its column has it."""
    value = text if text is None or pa.types.is_string(kind) else None
    if text is not None and not pa.types.is_string(kind):
        value = date.fromisoformat(text) if pa.types.is_date(kind) else int(text)  # type: ignore[assignment]
    return pa.scalar(value, kind)


def _metadata(files: Sequence[ParquetSource], notes: list[str]) -> dict[bytes, bytes]:
    """The files' key-value metadata: of several values of a key the first, as pyarrow.dataset has it, unless
    they are of rows.
    """
    metadata: dict[bytes, bytes] = {}
    for file in files:
        for key, value in (file.schema.metadata or {}).items():
            if key in STALE:
                why = "it lists the columns without the output's new ones"
                note = f"metadata {key.decode()!r} is left out: {why}"
                notes += [] if note in notes else [note]
            elif not key.startswith(OWN):
                metadata.setdefault(key, value)
    if any((file.schema.metadata or {}).get(SPARK) != metadata.get(SPARK) for file in files):
        metadata.pop(SPARK, None)  # it lists the types, which Spark tells from Parquet's as well
    if metadata.pop(GEO, None) and (geo := joined_geo(files, notes)):
        metadata[GEO] = geo
    return metadata


def _annotations(
    files: Sequence[ParquetSource], fields: dict[str, pa.Field], notes: list[str]
) -> dict[str, list[object]]:
    """The annotations to put back: of columns that every file annotates alike and that keep its type."""
    kept: dict[str, list[object]] = {}
    for name in dict.fromkeys(name for file in files for name in file.annotations):
        found = [file.annotations.get(name) for file in files]
        same = all(each == found[0] for each in found)
        if same and all(file.schema.field(name).type.equals(fields[name].type) for file in files):
            kept[name] = list(found[0] or ())
        else:
            told = [mark for file in files for mark in file.annotation_names.get(name, ())]
            marks = ", ".join(dict.fromkeys(told)) or "as an instant"
            notes.append(f"column {name!r} is no longer marked {marks}: not every file marks it so")
    return kept


def carried_metadata(schema: pa.Schema, added: Sequence[pa.Field]) -> dict[bytes, bytes]:
    """The input's metadata as the output has it: Spark's list of the columns gets the new ones."""
    metadata = dict(schema.metadata or {})
    if SPARK in metadata:
        try:
            struct = parse_json(metadata[SPARK])
            known = {field["name"] for field in struct["fields"]}
            new = [field for field in (*schema, *added) if field.name not in known]
            struct["fields"] += [
                {"name": field.name, "type": _spark_type(field.type), "nullable": True, "metadata": {}}
                for field in new
            ]
            metadata[SPARK] = json.dumps(struct, ensure_ascii=False).encode()
        except (ValueError, KeyError, TypeError):  # Spark tells the types from Parquet's as well
            del metadata[SPARK]
    return metadata


def _spark_type(kind: pa.DataType) -> str | dict[str, Any]:
    """A column's type in Spark's JSON. Raises `KeyError` for one that is not listed here."""
    if is_list(kind):
        return {"type": "array", "elementType": _spark_type(kind.value_type), "containsNull": True}
    kind = values_type(kind)
    return "string" if is_string(kind) else SPARK_TYPES[kind]
