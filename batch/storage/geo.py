"""GeoParquet's metadata (key `geo`) of several files: what one says of its own rows is not so of all.

https://geoparquet.org/releases/v1.1.0/
"""

import json
from collections.abc import Sequence
from typing import Any

from batch.contract.json_text import fits, parse_json
from batch.errors import InputError
from batch.storage.parquet import ParquetSource

GEO = b"geo"
SHAPE = {"columns": {str: {"encoding": str, "geometry_types?": [str]}}}  # what is read of it
MEANING = {"crs": "OGC:CRS84", "edges": "planar", "epoch": None, "encoding": None}  # of coordinates; defaults
Told = tuple[ParquetSource, dict[str, Any]]


def joined_geo(files: Sequence[ParquetSource], notes: list[str]) -> bytes | None:
    """What is so of the rows of all files; None where that cannot be told. Raises `InputError` where their
    coordinates mean different things.
    """
    files = [file for file in files if file.rows] or files[:1]  # an empty one says nothing of any row
    values = [(file.schema.metadata or {}).get(GEO) for file in files]
    if len(set(values)) == 1:
        return values[0]
    try:
        read = [parse_json(value) if value else {"columns": {}} for value in values]
    except ValueError:
        read = [None]
    if not all(fits(each, SHAPE) for each in read):
        notes.append("metadata 'geo' is left out: the files' differ, and one is not GeoParquet's")
        return None
    columns = {}
    for name in dict.fromkeys(name for each in read for name in each["columns"]):
        told = [(file, each["columns"].get(name, {})) for file, each in zip(files, read, strict=True)]
        columns[name] = _joined(name, told, notes)
    first = next(each for each, value in zip(read, values, strict=True) if value)
    return json.dumps({**first, "columns": columns}, ensure_ascii=False).encode()


def _joined(name: str, told: Sequence[Told], notes: list[str]) -> dict[str, Any]:
    known = [(file, column) for file, column in told if column]
    file, first = known[0]
    for other, column in known:
        for key in MEANING:
            here, there = (_meaning(each, key) for each in (column, first))
            if here != there:
                pair = f"{here[:80]} in {other.location.name} and {there[:80]} in {file.location.name}"
                raise InputError(f"the geometries of column {name!r} have the {key} {pair}; make them alike")
    kinds = [column.get("geometry_types") for _, column in told]  # none are any
    merged = {"geometry_types": sorted({kind for each in kinds for kind in each or ()} if all(kinds) else ())}
    for key in dict.fromkeys(key for _, column in known for key in column if key != "geometry_types"):
        values = {json.dumps(column.get(key), sort_keys=True) for _, column in told}
        if len(values) > 1 and key not in MEANING:
            notes.append(f"metadata 'geo' no longer has the {key} of column {name!r}: the files' differ")
        elif key in first:
            merged[key] = first[key]
    return merged


def _meaning(column: dict[str, Any], key: str) -> str:
    """A reference system by its number in a register, if it has one: its text differs from release to
    release.
    """
    value: Any = column.get(key, MEANING[key])
    if fits(value, {"id": {"authority": str, "code": (str, int)}}):
        return f"{value['id']['authority']}:{value['id']['code']}"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
