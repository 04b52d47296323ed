"""Labelled requests in CSV, TSV, Parquet or an export of Label Studio: a row each, under the names that a
line of JSON would have.

A table knows no booleans (CSV), no missing keys and no nesting: `TRUE` is true, an empty cell is a key that
is not there, or none of the values of an optional field, and a cell of facts or of several values holds JSON.
NaN is an empty cell: pandas writes a missing value so.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch.contract.contract import Contract
from batch.contract.fields import Field
from batch.contract.json_text import compact_json
from batch.errors import DatasetError
from batch.storage.location import reason
from batch.storage.schema import readable
from train import label_studio

SUFFIXES = frozenset({".csv", ".tsv", ".parquet", label_studio.SUFFIX})
ROW_NUMBERS = frozenset({"", "__index_level_0__"})  # columns that pandas writes
LONGEST_CELL = 1 << 24  # characters; what is too long for a request, the contract says
DELIMITERS = ",;\t"  # a spreadsheet in much of Europe writes the second


def id_texts(column: pa.Array) -> list[str | None]:
    """Ids as texts: a UUID with its dashes, other bytes as UTF-8 or else hexadecimal."""
    values = column.to_pylist() if isinstance(column.type, pa.UuidType) else readable(column)
    return [None if value is None else str(value) for value in values]


def read_table(path: Path, contract: Contract) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row's line and content. Raises `DatasetError` for a file that cannot be read."""
    fields = {field.name: field for field in contract.fields}
    try:
        for line, row in _rows(path, contract):
            yield line, dict(_cells(row, fields))
    except FileNotFoundError:
        raise DatasetError(f"no dataset at {path}; give the path of a file of labelled requests") from None
    except IsADirectoryError:
        raise DatasetError(f"{path}: is a directory; give the path of a file") from None
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        form = "Parquet" if path.suffix.lower() == ".parquet" else "UTF-8 text"
        raise DatasetError(f"{path}: cannot be read: {reason(error)}; save it again, as {form}") from error


def _cells(row: Mapping[str, Any], fields: Mapping[str, Field]) -> Iterator[tuple[str, Any]]:
    for name, cell in row.items():
        if not _empty(cell) and name not in ROW_NUMBERS:
            yield name, _value(name, cell, fields)
        elif field := fields.get(name):
            nothing: tuple[Any, ...] = (None, [])
            yield from ((name, none) for none in nothing if field.legal(field.read(none)))


def _empty(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _rows(path: Path, contract: Contract) -> Iterator[tuple[int, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix == label_studio.SUFFIX:
        return label_studio.read_export(path, contract)
    return _parquet(path) if suffix == ".parquet" else _csv(path)


def _csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = delimiter_of(file.readline())
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
            raise DatasetError(f"{path}:1: a column is duplicated; rename one")
        for row in reader:
            if None in row or None in row.values():
                raise DatasetError(
                    f"{path}:{reader.line_num}: does not have as many cells as the header; correct the row"
                )
            yield reader.line_num, row


def delimiter_of(header: str) -> str:
    """The delimiter that cuts a table's first line into the most names. Raises `csv.Error`."""
    csv.field_size_limit(LONGEST_CELL)
    return max(DELIMITERS, key=lambda each: len(next(csv.reader([header], delimiter=each), [])))


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with pq.ParquetFile(path) as file:
        line = 0
        for batch in file.iter_batches():
            for row in _as_rows(batch, f"{path}: rows {line + 1} to {line + batch.num_rows}"):
                line += 1
                yield line, row


def _as_rows(batch: pa.RecordBatch, where: str) -> list[dict[str, Any]]:
    """Raises `DatasetError` for a column with a cell that Python has no value for, such as the year 20000."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = id_texts(column) if name == "id" else column.to_pylist()
        except (ValueError, OverflowError) as error:
            what = f"{where}: column {name!r} ({column.type}) cannot be read: {reason(error)}"
            raise DatasetError(f"{what}; save the column as texts") from error
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _value(name: str, cell: Any, fields: Mapping[str, Field]) -> Any:
    """A cell as JSON would have it. What fits no legal value is left as it is, for the contract to refuse."""
    if name == "id":
        return str(cell)
    if name == "facts" and isinstance(cell, str):
        return _json(cell)
    field = fields.get(name)
    if field is None or not isinstance(cell, str) or not field.scored:
        return cell
    by_text = {compact_json(value).strip('"'): value for value in field.values}
    if cell in by_text:
        return by_text[cell]
    if field.type == "boolean":
        return by_text.get(cell.strip().lower(), cell)
    return _json(cell) if cell.startswith("[") else cell


def _json(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell
