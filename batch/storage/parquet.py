"""One Parquet file, read in bounded memory with every page's checksum verified and every failure one line.

A footer does not bound what a file expands to: a dictionary page stores a value once and a million rows can
repeat it. So rows are read in batches whose size follows the longest value in the dictionaries, and are cut
again by the bytes that they turned out to hold.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch.errors import BatchRouteError, InputError, StorageError
from batch.storage.convert import how_to_convert
from batch.storage.differences import misfit
from batch.storage.footer import MAGIC, Annotations, annotations, whole_numbers_of_128_bits
from batch.storage.guard import note, out_of_memory
from batch.storage.location import Location, reason
from batch.storage.schema import as_read, conformed
from batch.storage.sizes import (
    BATCH_BYTES,
    MOST_ROW_BYTES,
    cuts,
    row_bytes,
    safe_rows,
    text_leaves,
    value_bytes,
)

LOCAL_BUFFER, REMOTE_BUFFER = 1 << 16, 1 << 22  # read ahead, a column: bounds memory against a wide row group
FAILURES = (
    *(pa.ArrowException, OSError, MemoryError, ValueError, LookupError, TypeError),
    *(OverflowError, RecursionError),
)


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """What a Parquet file's footer declares. `open` raises `InputError`."""

    location: Location
    size: int  # bytes
    modified_ns: int | str | None  # in a store its version; None where neither is kept
    footer: str  # sha256 of the footer's bytes: tells a file from another of its size and time
    row_groups: tuple[int, ...]  # rows in each
    safe_rows: tuple[int, ...]  # rows of each that may be decoded at once
    declared_bytes: int  # uncompressed, as the footer has it
    schema: pa.Schema  # as the rows are read, with the file's own metadata
    annotations: Annotations  # what Arrow's types do not tell of the file's
    annotation_names: dict[str, list[str]]

    @classmethod
    def open(cls, location: Location) -> "ParquetSource":
        footer = b""
        try:
            size, modified_ns = location.stamp()
            with location.open() as handle:
                footer = _footer(location, handle)
                file = _file(location, handle)
                meta = file.metadata
                groups = [meta.row_group(index) for index in range(meta.num_row_groups)]
                schema = file.schema_arrow
                marks, names = annotations(footer)
                coded = _file(location, handle, read_dictionary=text_leaves(file), metadata=meta)
                source = cls(
                    location=location,
                    size=size,
                    modified_ns=modified_ns,
                    footer=hashlib.sha256(footer).hexdigest(),
                    row_groups=tuple(group.num_rows for group in groups),
                    safe_rows=tuple(safe_rows(coded, index) for index in range(len(groups))),
                    declared_bytes=sum(group.total_byte_size for group in groups),
                    schema=pa.schema(list(map(as_read, schema)), schema.metadata),
                    annotations=marks,
                    annotation_names=names,
                )
        except FAILURES as error:
            raise _refusal(location, footer, error) from error
        if min((*source.row_groups, 0)) < 0 or source.rows != meta.num_rows or source.declared_bytes < 0:
            raise InputError(f"{location.name}: its footer contradicts itself; write the file again")
        return source

    @property
    def rows(self) -> int:
        return sum(self.row_groups)

    def batches(
        self,
        start_row: int = 0,
        size: int = 4096,
        columns: Sequence[str] | None = None,
        schema: pa.Schema | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The rows from `start_row` on, in batches of at most `size` rows and about `BATCH_BYTES`.

        `schema` is what the columns are to be read as, by default the file's own. Row groups before
        `start_row` are not read. Raises `InputError` naming the row group, `StorageError` where the store
        failed or the file is another than when it was opened.
        """
        schema = schema or self.schema
        schema = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        with self._again() as handle:
            first_row = 0
            try:
                file = _file(self.location, handle)
            except FAILURES as error:
                raise self._damaged(0, error) from error
            for group, rows in enumerate(self.row_groups):
                if start_row < first_row + rows:
                    safe = min(size, self.safe_rows[group])
                    try:
                        # Threads would hold whole row groups, and one core is the engine's.
                        stream = file.iter_batches(
                            safe, row_groups=[group], columns=schema.names, use_threads=False
                        )
                    except FAILURES as error:
                        raise self._damaged(group, error) from error
                    note(f"{self.location.name}, row group {group},")
                    yield from self._group(group, stream, schema, max(0, start_row - first_row))
                first_row += rows
            self._check_stamp()

    def verify(self) -> None:
        """Raises `StorageError` where the file is another than when it was opened."""
        self._again().close()

    def levels(self, column: str) -> Iterator[pa.Array]:
        """The dictionaries of a column that is read as one. Each batch may have its own: of a plain page a
        dictionary is made of the values as they come.
        """
        return (batch.column(0).dictionary for batch in self.batches(columns=[column]))

    def _group(
        self, group: int, stream: Iterator[pa.RecordBatch], schema: pa.Schema, skip: int
    ) -> Iterator[pa.RecordBatch]:
        row = 0
        while True:
            try:
                batch = next(stream, None)
                if batch is not None:
                    arrays = [self._conformed(batch.column(field.name), field) for field in schema]
                    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
                    sizes = row_bytes(batch)
            except FAILURES as error:
                raise self._damaged(group, error) from error
            if batch is None:
                break
            if len(sizes) and sizes.max() > MOST_ROW_BYTES:
                self._refuse_row(batch, sum(self.row_groups[:group]) + row, int(sizes.argmax()))
            row += batch.num_rows
            drop = min(skip, batch.num_rows)
            skip -= drop
            for start, end in cuts(sizes[drop:], BATCH_BYTES):
                yield batch.slice(drop + start, end - start)
            if self.location.local:  # a store is asked at the end
                self._check_stamp()
        if row != self.row_groups[group]:
            raise self._damaged(
                group, ValueError(f"{row} rows where its footer has {self.row_groups[group]}")
            )

    def _conformed(self, array: pa.Array, field: pa.Field) -> pa.Array:
        """A column as the other files have it. Raises `InputError` where its values do not fit there."""
        try:
            return conformed(array, field.type)
        except pa.ArrowInvalid as error:
            path, own, others = misfit(field.name, array, field.type)
            why = (
                f"column {path!r} is {own} and does not fit into the other files' {others} ({reason(error)})"
            )
            raise InputError(f"{self.location.name}: {why}; make them alike") from error

    def _refuse_row(self, batch: pa.RecordBatch, first: int, offset: int) -> None:
        held = {name: int(value_bytes(batch[name])[offset]) for name in batch.schema.names}
        name = max(held, key=lambda each: held[each])
        what = (
            f"row {first + offset} holds more than {MOST_ROW_BYTES >> 20} MiB, most of it in column {name!r}"
        )
        raise InputError(f"{self.location.name}: {what}; shorten or drop it")

    def _again(self) -> pa.NativeFile:
        """The file, open, if it is still the one that was checked."""
        try:
            self._check_stamp()
            handle = self.location.open()
            footer = _footer(self.location, handle)
        except InputError as error:
            raise self._changed() from error
        except FAILURES as error:
            raise StorageError(
                f"cannot read {self.location.name}: {reason(error)}; run again to resume"
            ) from error
        if hashlib.sha256(footer).hexdigest() != self.footer:
            raise self._changed()
        return handle

    def _check_stamp(self) -> None:
        try:
            stamp = self.location.stamp()
        except FileNotFoundError as error:
            raise self._changed() from error
        if stamp != (self.size, self.modified_ns):
            raise self._changed()

    def _changed(self) -> StorageError:
        return StorageError(
            f"{self.location.name} was changed while it was read; run again once nothing writes to it"
        )

    def _damaged(self, group: int, error: BaseException) -> BatchRouteError:
        try:
            self._check_stamp()
        except StorageError as changed:
            return changed
        if isinstance(error, MemoryError):
            return out_of_memory(f"{self.location.name}, row group {group},")
        where = f"{self.location.name}: cannot read row group {group}: {reason(error)}"
        failed_store = (
            isinstance(error, OSError)
            and (error.errno or not self.location.local)
            and "CRC" not in str(error)
        )
        if failed_store:
            return StorageError(f"{where}; run again to resume")
        return InputError(f"{where}; write the file again")


def _file(location: Location, handle: pa.NativeFile, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(
        handle,
        pre_buffer=False,
        buffer_size=LOCAL_BUFFER if location.local else REMOTE_BUFFER,
        page_checksum_verification=True,
        # Spark's old timestamps are of 96 bits; as nanoseconds of 64 they would wrap beyond 1677 and 2262.
        coerce_int96_timestamp_unit="us",
        **options,
    )


def _footer(location: Location, handle: pa.NativeFile) -> bytes:
    """The footer's bytes. Raises `InputError` for what has none, told from the first and last bytes."""
    size = handle.size()
    head, tail = handle.read_at(min(4, size), 0), handle.read_at(min(8, size), max(0, size - 8))
    if not size:
        raise InputError(f"{location.name} is empty, not Parquet; write the file again")
    if b"PARE" in (head, tail[-4:]):
        raise InputError(f"{location.name} is encrypted; decrypt it first")
    if head != MAGIC:
        raise InputError(f"{location.name} is not a Parquet file; {how_to_convert(location.name)}")
    length = int.from_bytes(tail[:4], "little")
    if size < 12 or tail[4:] != MAGIC or length > size - 12:
        raise InputError(f"{location.name} is truncated; write the file again")
    footer: bytes = handle.read_at(length, size - 8 - length)
    return footer


def _refusal(location: Location, footer: bytes, error: BaseException) -> BatchRouteError:
    """Why a file could not be opened."""
    if isinstance(error, OSError) and error.errno:
        remedy = "check its permissions" if isinstance(error, PermissionError) else "check the path"
        return InputError(f"cannot read {location.name}: {reason(error)}; {remedy}")
    if isinstance(error, MemoryError):
        return out_of_memory(location.name)
    if "more than 64 bits" in str(error):
        columns = ", ".join(map(repr, whole_numbers_of_128_bits(footer)))
        what = f"column {columns} is of whole numbers of 128 bits, which are not read"
        remedy = "write it with .cast(pl.Int64), or .cast(pl.String) where that is too small"
        return InputError(f"{location.name}: {what}; in Polars, {remedy}")
    if "crypt" in str(error).lower():
        return InputError(f"{location.name} is encrypted; decrypt it first")
    return InputError(
        f"{location.name}: its Parquet footer cannot be read ({reason(error)}); write the file again"
    )
