"""The backlog: the Parquet files that a run reads, checked before any expensive work."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from batch.errors import InputError, nearest
from batch.storage.hashing import Int64s, repeated, text_hashes
from batch.storage.location import Location, reason, shown
from batch.storage.parquet import (
    FAILURES,
    MAX_EXPANSION,
    IdDigest,
    ParquetSource,
    is_string,
    plain,
    row_bytes,
)

MAX_ROWS = 500_000_000  # 8 bytes each are held while ids are checked
MAX_BYTES = 1 << 40  # uncompressed, as declared and as read
FREE_BYTES = 1 << 30  # decoded strings that are let through however small the file is


@dataclasses.dataclass(frozen=True)
class Backlog:
    """Rows to classify: one file, a directory or a glob, in order of path. Build it with :meth:`open`."""

    source: str
    files: tuple[ParquetSource, ...]
    schema: pa.Schema
    id_column: str
    text_column: str

    @classmethod
    def open(
        cls, source: str, id_column: str, text_column: str, output_columns: Sequence[str] = ()
    ) -> "Backlog":
        """Open and check every footer; reads no rows. Raises `InputError`."""
        files = tuple(ParquetSource.open(location) for location in _locations(source))
        backlog = cls(shown(source), files, files[0].schema, id_column, text_column)
        for check in (backlog._check_size, backlog._check_schemas, backlog._check_columns):
            check()
        backlog.refuse_columns(output_columns)
        return backlog

    def refuse_columns(self, output_columns: Sequence[str]) -> None:
        """Raises `InputError` if a column has the name of one that a run adds."""
        taken = [name for name in self.schema.names if name in set(output_columns)]
        if taken:
            raise InputError(
                f"{self.source} already has a column {taken[0]!r}; rename the output's with --prefix"
            )

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def identity(self) -> dict[str, Any]:
        """What makes this input this input, as JSON values: a resumed run must find it unchanged."""
        return {
            "files": [
                {
                    "path": f.location.path,
                    "size": f.size,
                    "modified_ns": f.modified_ns,
                    "row_groups": list(f.row_groups),
                }
                for f in self.files
            ],
            "schema": {field.name: str(field.type) for field in self.schema},
        }

    def batches(
        self,
        start_row: int = 0,
        size: int = 4096,
        columns: Sequence[str] | None = None,
        stop_row: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Rows from `start_row` up to `stop_row`, in input order, in batches of at most `size` rows. Raises
        `InputError`.
        """
        left = (self.rows if stop_row is None else stop_row) - start_row
        for file in self.files:
            if left > 0 and start_row < file.rows:
                for batch in file.batches(start_row, size, columns):
                    yield batch.slice(0, left)
                    left -= batch.num_rows
                    if left <= 0:
                        return
            start_row = max(0, start_row - file.rows)

    def check_ids(self) -> str:
        """Read every column once: all pages decode, and no id is null, invalid or there twice.

        Returns the sha256 (hex) of the ids in order. Raises `InputError` naming the row, counted from 0.
        Holds 8 bytes a row: ids whose hashes are equal are compared in a second pass, so the answer is exact.
        """
        digest = IdDigest()
        hashes: Int64s = np.empty(self.rows, dtype=np.int64)
        row = decoded = 0
        for batch in self.batches():
            ids = plain(batch.column(self.id_column))
            if ids.null_count:
                raise InputError(
                    f"{self.source}: row {row + _first(ids.is_null())} has no id; fill it or drop the row"
                )
            digest.update(ids)
            hashes[row : row + len(ids)] = self._hashes(ids, row)
            row += len(ids)
            decoded += int(row_bytes(batch).sum())
            self._check_expansion(decoded)
        hashes.sort()
        repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        del hashes
        if len(repeated):
            self._check_repeated(repeated)
        pa.default_memory_pool().release_unused()
        return digest.hexdigest()

    def repeated_texts(self) -> Int64s:
        """The :func:`text_hashes` of texts that are there more than once, sorted. Holds 8 bytes a row."""
        hashes: Int64s = np.empty(self.rows, dtype=np.int64)
        row = 0
        for batch in self.batches(columns=[self.text_column]):
            texts = plain(batch.column(0)).cast(pa.large_binary()).to_pylist()
            hashes[row : row + len(texts)] = text_hashes(texts)
            row += len(texts)
        pa.default_memory_pool().release_unused()
        return repeated(hashes)

    def texts(self, batch: pa.RecordBatch) -> tuple[list[str | None], set[int]]:
        """The batch's requests, and the offsets of those that are not valid UTF-8 (None in the list, like a
        null).
        """
        column = plain(batch.column(self.text_column))
        if pa.types.is_null(column.type):
            return [None] * len(column), set()
        try:
            column.validate(full=True)  # nothing else in pyarrow looks at the bytes
            return column.to_pylist(), set()
        except (pa.ArrowInvalid, UnicodeDecodeError):
            pass
        texts: list[str | None] = []
        invalid = set()
        for offset, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                invalid.add(offset)
        return texts, invalid

    def _check_size(self) -> None:
        if self.rows > MAX_ROWS:
            raise InputError(f"{self.source} declares {self.rows} rows, more than {MAX_ROWS}; split it")
        if sum(file.declared_bytes for file in self.files) > MAX_BYTES:
            raise InputError(f"{self.source} declares more than {MAX_BYTES >> 30} GiB; split it")

    def _check_expansion(self, decoded: int) -> None:
        size = sum(file.size for file in self.files)
        if decoded > MAX_BYTES or decoded > max(FREE_BYTES, size * MAX_EXPANSION):
            expansion = f"{size} bytes expand to more than {decoded >> 20} MiB of text"
            raise InputError(f"{self.source}: {expansion}; split or shorten it")

    def _check_schemas(self) -> None:
        first = {field.name: field.type for field in self.schema}
        if len(first) < len(self.schema.names):
            name = next(name for name in self.schema.names if self.schema.names.count(name) > 1)
            raise InputError(f"{self.source} has two columns {name!r}; rename one")
        for file in self.files[1:]:
            other = {field.name: field.type for field in file.schema}
            if list(other.items()) != list(first.items()) or len(other) < len(file.schema.names):
                differing = [n for n in (*first, *other) if first.get(n) != other.get(n)]
                what = (
                    f"column {differing[0]!r} differs"
                    if differing
                    else "its columns come in another order or twice"
                )
                pair = f"{file.location.name} has not the schema of {self.files[0].location.name}"
                raise InputError(f"{pair}: {what}; make them alike")

    def _check_columns(self) -> None:
        for option, name in (("--id-column", self.id_column), ("--text-column", self.text_column)):
            if name not in self.schema.names:
                hint = (
                    nearest(name, self.schema.names)
                    or f" (it has {', '.join(map(repr, self.schema.names[:8]))})"
                )
                raise InputError(f"{self.source} has no column {name!r}{hint}; name one with {option}")
        for option, name, integers in (
            ("--id-column", self.id_column, True),
            ("--text-column", self.text_column, False),
        ):
            kind = self.schema.field(name).type
            value = kind.value_type if pa.types.is_dictionary(kind) else kind
            # An empty export has columns of type null; so has one whose texts are all null.
            empty = pa.types.is_null(kind) and (self.rows == 0 or not integers)
            if not (is_string(value) or empty or (integers and pa.types.is_integer(kind))):
                wanted = "strings or whole numbers" if integers else "strings"
                found = f"column {name!r} is {str(kind)[:60]}, not {wanted}"
                raise InputError(f"{self.source}: {found}; convert it or name another with {option}")

    def _hashes(self, ids: pa.Array, row: int) -> Int64s:
        """64 bits an id, int64 [rows]. Python's string hash is keyed anew in each process, so nobody can
        prepare a backlog of equal hashes; whole numbers stand for themselves."""
        if pa.types.is_integer(ids.type):
            whole: Int64s = ids.to_numpy().astype(np.int64)
            return whole
        try:
            hashes: Int64s = np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.source}: an id after row {row} is not valid UTF-8; correct it"
            ) from error
        return hashes

    def _check_repeated(self, repeated: Int64s) -> None:
        seen: dict[Any, int] = {}
        row = 0
        for batch in self.batches(columns=[self.id_column]):
            ids = plain(batch.column(0))
            suspects = np.flatnonzero(np.isin(self._hashes(ids, row), repeated))
            for offset, value in zip(suspects, ids.take(pa.array(suspects)).to_pylist(), strict=True):
                if value in seen:
                    pair = f"rows {seen[value]} and {row + offset}"
                    raise InputError(f"{self.source}: {pair} have the same id; make ids unique")
                seen[value] = row + int(offset)
            row += len(ids)


def _first(mask: pa.Array) -> int:
    return int(np.flatnonzero(mask.to_numpy(zero_copy_only=False))[0])


def _locations(source: str) -> list[Location]:
    """The files of a path, directory or glob, in order of path."""
    location = Location.of(source)
    try:
        info = location.filesystem.get_file_info(location.path)
        if info.type == fs.FileType.File:
            return [location]
        root, deep, pattern = location.path, True, r".*\.(parquet|parq|pq)"
        if info.type == fs.FileType.NotFound:
            if not re.search(r"[*?\[]", location.path):
                raise InputError(f"no file {location.name}; check the path")
            root, pattern = re.split(r"/[^/]*[*?\[]", location.path)[0], _regex(location.path)
            deep = "/" in location.path[len(root) + 1 :]
        found = location.filesystem.get_file_info(fs.FileSelector(root or "/", recursive=deep))
    except FAILURES as error:
        raise InputError(f"cannot read {location.name}: {reason(error)}; check the path") from error
    paths = sorted(file.path for file in found if file.type == fs.FileType.File)
    # Not _SUCCESS, work directories and half-written outputs.
    hidden = re.compile(r"/[._]")
    paths = [
        p
        for p in paths
        if re.fullmatch(pattern, p, re.DOTALL) and not hidden.search(p, len(root.rstrip("/")))
    ]
    if not paths:
        raise InputError(f"no Parquet file matches {location.name}; check the path")
    return [Location(location.filesystem, path, path) for path in paths]


def _regex(glob: str) -> str:
    """A glob as a regular expression: `*` and `?` stay inside a folder, `**/` crosses them."""
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    parts = []
    for part in re.split(r"(\*\*/|\*|\?|\[[^]]+\])", glob):
        if part.startswith("[") and part.endswith("]"):
            parts.append(part.replace("[!", "[^", 1))
        else:
            parts.append(known.get(part) or re.escape(part))
    return "".join(parts)
