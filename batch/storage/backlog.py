"""The backlog: the Parquet files that a run reads, checked before any expensive work."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from batch.errors import InputError, nearest, shown
from batch.storage.guard import PATIENCE, REACH, guarded, note
from batch.storage.hashing import IdDigest, Int64s, equal, repeated, text_hashes
from batch.storage.listing import Found, files_of
from batch.storage.location import is_local
from batch.storage.parquet import ParquetSource
from batch.storage.schema import is_id, is_text, names_alike, on_levels, plain
from batch.storage.sizes import row_bytes
from batch.storage.unify import Unified, partition_value, unify
from batch.storage.units import Cursor, Unit

MAX_ROWS = 500_000_000  # 8 bytes each are held while ids are checked
MAX_BYTES = 1 << 40  # uncompressed, as declared and as read
FREE_BYTES = 1 << 30  # decoded strings that are let through however small the file is
MAX_EXPANSION = 1000  # decoded bytes over those in the file, beyond which it is a bomb
HASH_BYTES = 8  # of an id, while all are held


@dataclasses.dataclass(frozen=True)
class Backlog:
    """Rows to classify: one file, a directory or a glob, in order of path. Build it with :meth:`open`."""

    source: str
    files: tuple[ParquetSource, ...]
    found: tuple[Found, ...]  # each file's place, and its partition keys
    skipped: tuple[tuple[str, str], ...]  # (path, why) of files beside them that are not read
    columns: Unified
    id_column: str
    text_column: str

    @classmethod
    def open(
        cls, source: str, id_column: str, text_column: str, output_columns: Sequence[str] = ()
    ) -> "Backlog":
        """Open and check every footer, in a child process; reads no rows. Raises `InputError`."""
        reach = PATIENCE if is_local(source) else REACH
        listing, files, columns = guarded(_opened, source, what=shown(source), reach=reach)
        backlog = cls(shown(source), files, listing.files, listing.skipped, columns, id_column, text_column)
        backlog._check_size()
        backlog._check_columns()
        backlog.refuse_columns(output_columns)
        return backlog

    @property
    def schema(self) -> pa.Schema:
        return self.columns.schema

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the input is not read, or does not stay as it was: a line each."""
        return (*(f"skipped {path}: {why}" for path, why in self.skipped), *self.columns.notes)

    def refuse_columns(self, output_columns: Sequence[str]) -> None:
        """Raises `InputError` if a column has the name of one that a run adds. Case does not tell them apart:
        Spark and DuckDB take `Status` and `status` for one column.
        """
        if pair := names_alike(self.schema.names, output_columns):
            alike = "" if pair[0] == pair[1] else f" (the output's is {pair[1]!r})"
            raise InputError(
                f"{self.source} already has a column {pair[0]!r}{alike}; rename the output's with --prefix"
            )

    def verify(self) -> None:
        """Raises `StorageError` where a file is no longer what it was when it was opened."""
        for file in self.files:
            file.verify()

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
                    "footer": f.footer[:16],
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
        `InputError`, and `StorageError` where a file has changed.
        """
        names = self.schema.names if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        left = (self.rows if stop_row is None else stop_row) - start_row
        for file, found in zip(self.files, self.found, strict=True):
            if left > 0 and start_row < file.rows:
                keys = dict(found.partitions)
                own = [field for field in schema if field.name not in keys]
                some = [field for field in self.schema if field.name not in keys]
                own = pa.schema(own or some[:1])  # some column of the file's must tell the rows
                for batch in file.batches(start_row, size, schema=own):
                    whole = self._whole(batch, keys, schema) if keys or self.columns.levels else batch
                    yield whole.slice(0, left)
                    left -= batch.num_rows
                    if left <= 0:
                        return
            start_row = max(0, start_row - file.rows)

    def _whole(self, batch: pa.RecordBatch, keys: dict[str, str | None], schema: pa.Schema) -> pa.RecordBatch:
        """A file's rows with its partition keys, and each ordered dictionary on the backlog's own levels."""
        arrays = []
        for field in schema:
            if field.name in keys:
                arrays.append(pa.repeat(partition_value(keys[field.name], field.type), batch.num_rows))
            elif field.name in self.columns.levels:
                levels = self.columns.levels[field.name]
                arrays.append(on_levels(batch.column(field.name), levels, field.type))
            else:
                arrays.append(batch.column(field.name))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def check_ids(self) -> str:
        """Read every column once, in a child process: all pages decode, and no id is null, invalid or
        duplicated.

        Returns the sha256 (hex) of the ids in order. Raises `InputError` naming the row, counted from 0.
        """
        digest: str = guarded(read_through, self, what=self.source, extra=HASH_BYTES * self.rows)
        return digest

    def repeated_texts(self, units: Iterable[Unit]) -> Int64s:
        """The :func:`text_hashes` of texts that occur more than once in these units, sorted. Holds 8
        bytes a row.
        """
        units = list(units)
        hashes: Int64s = np.empty(sum(unit.rows for unit in units), dtype=np.int64)
        cursor = Cursor(lambda start: self.batches(start, columns=[self.text_column]))
        row = 0
        for batch in itertools.chain.from_iterable(cursor.read(unit.start, unit.stop) for unit in units):
            texts = plain(batch.column(0)).cast(pa.large_binary()).to_pylist()
            hashes[row : row + len(texts)] = text_hashes(texts)
            row += len(texts)
        pa.default_memory_pool().release_unused()
        return repeated(hashes)

    def _check_size(self) -> None:
        if self.rows > MAX_ROWS:
            raise InputError(f"{self.source} declares {self.rows} rows, more than {MAX_ROWS}; split it")
        if sum(file.declared_bytes for file in self.files) > MAX_BYTES:
            raise InputError(f"{self.source} declares more than {MAX_BYTES >> 30} GiB; split it")

    def _check_columns(self) -> None:
        for option, name in (("--id-column", self.id_column), ("--text-column", self.text_column)):
            if name not in self.schema.names:
                hint = (
                    nearest(name, self.schema.names)
                    or f" (it has {', '.join(map(repr, self.schema.names[:8]))})"
                )
                raise InputError(f"{self.source} has no column {name!r}{hint}; name one with {option}")
        for option, name, wanted, fits in (
            ("--id-column", self.id_column, "strings, bytes or whole numbers", is_id),
            ("--text-column", self.text_column, "strings", is_text),
        ):
            kind = self.schema.field(name).type
            # An empty export has columns of type null; so has one whose texts are all null.
            empty = pa.types.is_null(kind) and (self.rows == 0 or fits is is_text)
            marked = self.columns.marked.get(name) == ["ENUM"]  # its bytes are UTF-8
            if not (fits(kind) or empty or marked):
                found = f"column {name!r} is {str(kind)[:60]}, not {wanted}"
                raise InputError(f"{self.source}: {found}; convert it or name another with {option}")


def _opened(source: str) -> tuple[Any, tuple[ParquetSource, ...], Unified]:
    """The files of an INPUT, their footers, and the columns that they share."""
    listing = files_of(source)
    files = []
    for found in listing.files:
        note(found.location.name)
        files.append(ParquetSource.open(found.location))
    return listing, tuple(files), unify(files, listing.files)


def read_through(backlog: Backlog) -> str:
    """What :meth:`Backlog.check_ids` is about.

    Holds 8 bytes a row: ids whose hashes are equal are compared in a second pass, so the answer is exact.
    """
    digest = IdDigest()
    hashes: Int64s = np.empty(backlog.rows, dtype=np.int64)
    row = decoded = 0
    for batch in backlog.batches():
        ids = plain(batch.column(backlog.id_column))
        if ids.null_count:
            missing = row + int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError(f"{backlog.source}: row {missing} has no id; fill it or drop the row")
        digest.update(ids)
        hashes[row : row + len(ids)] = _hashes(backlog, ids, row)
        row += len(ids)
        decoded += int(row_bytes(batch).sum())
        _check_expansion(backlog, decoded)
    for again in equal(hashes):
        _check_repeated(backlog, again)
    del hashes
    pa.default_memory_pool().release_unused()
    return digest.hexdigest()


def _check_expansion(backlog: Backlog, decoded: int) -> None:
    size = sum(file.size for file in backlog.files)
    if decoded > MAX_BYTES or decoded > max(FREE_BYTES, size * MAX_EXPANSION):
        expansion = f"{size} bytes expand to more than {decoded >> 20} MiB of text"
        raise InputError(f"{backlog.source}: {expansion}; split or shorten it")


def _hashes(backlog: Backlog, ids: pa.Array, row: int) -> Int64s:
    """64 bits an id, int64 [rows]. Python's string hash is keyed anew in each process, so nobody can
    prepare a backlog of equal hashes; whole numbers stand for themselves."""
    if pa.types.is_integer(ids.type):
        whole: Int64s = ids.to_numpy().astype(np.int64)
        return whole
    try:
        hashes: Int64s = np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))
    except UnicodeDecodeError as error:
        raise InputError(f"{backlog.source}: an id after row {row} is not valid UTF-8; correct it") from error
    return hashes


def _check_repeated(backlog: Backlog, again: Int64s) -> None:
    """`again` is sorted: np.isin would sort it for each batch."""
    seen: dict[Any, int] = {}
    row = 0
    for batch in backlog.batches(columns=[backlog.id_column]):
        ids = plain(batch.column(0))
        hashes = _hashes(backlog, ids, row)
        near = again[np.minimum(np.searchsorted(again, hashes), len(again) - 1)]
        suspects = np.flatnonzero(near == hashes)
        for offset, value in zip(suspects, ids.take(pa.array(suspects)).to_pylist(), strict=True):
            if value in seen:
                pair = f"rows {seen[value]} and {row + offset}"
                raise InputError(f"{backlog.source}: {pair} have the same id; make ids unique")
            seen[value] = row + int(offset)
        row += len(ids)
