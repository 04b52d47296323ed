"""One Parquet file, read in bounded memory with every page's checksum verified and every failure one line.

A footer does not bound what a file expands to: a dictionary page stores a value once and a million rows can
repeat it. So rows are read in batches whose size follows the longest value in the dictionaries, and are cut
again by the bytes that they turned out to hold.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch.errors import InputError, StorageError
from batch.storage.hashing import Int64s
from batch.storage.location import Location, reason

BATCH_BYTES = 16 << 20  # strings in one batch, decoded
ROW_BYTES = 16 << 20  # strings in one row: more is refused
LIST_BYTES = 256 << 20  # values of one list column in one row group, decoded, unless the file holds them
MAX_EXPANSION = 1000  # decoded bytes over those in the file, beyond which it is a bomb
WIDTH = 8  # bytes of a number, at least
LOCAL_BUFFER, REMOTE_BUFFER = 1 << 16, 1 << 22  # read ahead, a column: bounds memory against a wide row group
FAILURES = (pa.ArrowException, OSError, MemoryError, ValueError, KeyError, TypeError, OverflowError)


def is_string(kind: pa.DataType) -> bool:
    return any((pa.types.is_string(kind), pa.types.is_large_string(kind), pa.types.is_string_view(kind)))


def is_stringlike(kind: pa.DataType) -> bool:
    """Whether values of `kind` have a length of their own: strings, bytes and dictionaries of them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return binary or is_string(kind)


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """What a Parquet file's footer declares. `open` raises `InputError`."""

    location: Location
    size: int  # bytes
    modified_ns: int | None  # None where the store keeps no time
    row_groups: tuple[int, ...]  # rows in each
    declared_bytes: int  # uncompressed, as the footer has it
    schema: pa.Schema

    @classmethod
    def open(cls, location: Location) -> "ParquetSource":
        try:
            info = location.filesystem.get_file_info(location.path)
            file = _open(location)
            meta = file.metadata
            groups = [meta.row_group(index) for index in range(meta.num_row_groups)]
            schema = file.schema_arrow
            source = cls(
                location=location,
                size=info.size,
                modified_ns=info.mtime_ns,
                row_groups=tuple(group.num_rows for group in groups),
                declared_bytes=sum(group.total_byte_size for group in groups),
                # Schema metadata (pandas, huggingface) describes exactly these columns; the output has more.
                schema=pa.schema(
                    [pa.field(field.name, _as_read(field.type), field.nullable) for field in schema]
                ),
            )
        except FAILURES as error:
            raise InputError(_refusal(location, error)) from error
        if min((*source.row_groups, 0)) < 0 or source.rows != meta.num_rows or source.declared_bytes < 0:
            raise InputError(f"{location.name}: its footer contradicts itself; write the file again")
        return source

    @property
    def rows(self) -> int:
        return sum(self.row_groups)

    def batches(
        self, start_row: int = 0, size: int = 4096, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows from `start_row` on, in batches of at most `size` rows and about `BATCH_BYTES`.

        Row groups before `start_row` are not read. Raises `InputError` naming the row group, `StorageError`
        where the store failed.
        """
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        try:
            file = _open(self.location)
            coded = _open(self.location, read_dictionary=_text_leaves(file), metadata=file.metadata)
        except FAILURES as error:
            raise self._damaged(0, error) from error
        first_row = 0
        for group, rows in enumerate(self.row_groups):
            if start_row < first_row + rows:
                try:
                    safe = min(size, self._safe_size(coded, group, schema.names))
                    # Threads would hold whole row groups, and one core is the engine's.
                    stream = file.iter_batches(
                        safe, row_groups=[group], columns=schema.names, use_threads=False
                    )
                except FAILURES as error:
                    raise self._damaged(group, error) from error
                yield from self._group(group, stream, schema, max(0, start_row - first_row))
            first_row += rows

    def _group(
        self, group: int, stream: Iterator[pa.RecordBatch], schema: pa.Schema, skip: int
    ) -> Iterator[pa.RecordBatch]:
        row = 0
        while True:
            try:
                batch = next(stream, None)
                if batch is not None:
                    arrays = [batch.column(field.name).cast(field.type) for field in schema]
                    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
                    sizes = row_bytes(batch)
            except FAILURES as error:
                raise self._damaged(group, error) from error
            if batch is None:
                break
            row += batch.num_rows
            drop = min(skip, batch.num_rows)
            skip -= drop
            if len(sizes) and sizes.max() > ROW_BYTES:
                what = f"a row of row group {group} holds more than {ROW_BYTES >> 20} MiB"
                raise InputError(f"{self.location.name}: {what}; shorten or drop it")
            for start, end in _cuts(sizes[drop:], BATCH_BYTES):
                yield batch.slice(drop + start, end - start)
        if row != self.row_groups[group]:
            raise self._damaged(
                group, ValueError(f"{row} rows where its footer has {self.row_groups[group]}")
            )

    def _safe_size(self, file: pq.ParquetFile, group: int, names: Sequence[str]) -> int:
        """Rows of the row group that may be decoded at once. `file` reads texts as dictionaries, unexpanded.

        Raises `InputError` where a list's values, however few bytes code them, would not fit at all.
        """
        meta = file.metadata.row_group(group)
        largest = 1.0  # bytes a row, of the columns' means
        for index in range(meta.num_columns):
            column = meta.column(index)
            top = column.path_in_schema.partition(".")[0]
            if top not in names and column.path_in_schema not in names:
                continue
            width = max(WIDTH, column.total_uncompressed_size / max(1, column.num_values))
            listed = file.schema.column(index).max_repetition_level > 0
            most = max(LIST_BYTES, MAX_EXPANSION * column.total_compressed_size) if listed else math.inf
            for refine in (False, True):
                if refine and column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
                    width = max(width, _longest(file, group, column.path_in_schema))
                if width * column.num_values > most:
                    what = f"column {top!r} of row group {group} expands to more than {int(most) >> 20} MiB"
                    raise InputError(f"{self.location.name}: {what}; split or shorten it")
            largest = max(largest, width * column.num_values / max(1, meta.num_rows))
        return max(1, int(BATCH_BYTES / largest))

    def _damaged(self, group: int, error: BaseException) -> InputError | StorageError:
        where = f"{self.location.name}: cannot read row group {group}: {reason(error)}"
        failed_store = (
            isinstance(error, OSError)
            and (error.errno or not self.location.local)
            and "CRC" not in str(error)
        )
        if failed_store:
            return StorageError(f"{where}; run again to resume")
        return InputError(f"{where}; write the file again")


def _text_leaves(file: pq.ParquetFile) -> list[str]:
    """Paths of the columns, nested ones too, whose values have a length of their own."""
    leaves = map(file.schema.column, range(len(file.schema)))
    return [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]


def _longest(file: pq.ParquetFile, group: int, path: str) -> int:
    """Bytes of the longest value in a text column's dictionary, which a million rows may repeat."""
    head = next(file.iter_batches(1, row_groups=[group], columns=[path], use_threads=False), None)
    array = None if head is None else head.column(0)
    while array is not None and not pa.types.is_dictionary(array.type):
        if pa.types.is_map(array.type):
            array = array.keys if ".key" in path else array.items
        elif pa.types.is_struct(array.type):
            array = array.field(0) if array.type.num_fields else None
        elif pa.types.is_nested(array.type):
            array = array.values
        else:
            array = None
    return (pc.max(pc.binary_length(array.dictionary)).as_py() or 0) if array is not None else 0


def _as_read(kind: pa.DataType) -> pa.DataType:
    """Dictionaries of one file differ from another's, so their indices get room: the reader gives int32."""
    return pa.dictionary(pa.int32(), kind.value_type, kind.ordered) if pa.types.is_dictionary(kind) else kind


def _open(location: Location, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(
        location.path,
        filesystem=location.filesystem,
        pre_buffer=False,
        buffer_size=LOCAL_BUFFER if location.local else REMOTE_BUFFER,
        page_checksum_verification=True,
        **options,
    )


def _refusal(location: Location, error: BaseException) -> str:
    """Why a file could not be opened, told from its first and last bytes where pyarrow's words do
    not help.
    """
    if isinstance(error, PermissionError):
        return f"cannot read {location.name}: {reason(error)}; check its permissions"
    try:
        with location.filesystem.open_input_file(location.path) as file:
            size = file.size()
            head = file.read(4)
            tail = file.read_at(min(4, size), max(0, size - 4))
    except FAILURES as failure:
        return f"cannot read {location.name}: {reason(failure)}; check the path"
    if not size:
        return f"{location.name} is empty, not Parquet; write the file again"
    if b"PARE" in (head, tail) or "encrypt" in str(error).lower() or "decrypt" in str(error).lower():
        return f"{location.name} is encrypted; decrypt it first"
    if head == b"PAR1" and tail != b"PAR1":
        return f"{location.name} is truncated; write the file again"
    if head != b"PAR1":
        return f"{location.name} is not a Parquet file; convert it first"
    return f"{location.name}: its Parquet footer cannot be read ({reason(error)}); write the file again"


def row_bytes(batch: pa.RecordBatch | pa.Table) -> Int64s:
    """Bytes of strings in each row, int64 [rows]; other types are small and nested ones are not counted."""
    sizes: Int64s = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if not is_stringlike(column.type):
            continue
        if pa.types.is_dictionary(column.type):
            lengths = pc.take(pc.binary_length(_measurable(column.dictionary)), column.indices)
        else:
            lengths = pc.binary_length(_measurable(column))
        sizes += pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
    return sizes


def _measurable(column: pa.Array) -> pa.Array:
    if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
        return column.cast(pa.large_binary())  # binary_length has no kernel for views
    return column


def _cuts(sizes: Int64s, limit: int) -> Iterator[tuple[int, int]]:
    """Runs ``(start, end)`` of rows that hold at most `limit` bytes each, or one row."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start] - sizes[start]
        end = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield start, end
        start = end


class IdDigest:
    """sha256 over a sequence of ids in order, whatever the batches they come in. Ids are strings or whole
    numbers.
    """

    def __init__(self) -> None:
        self._values, self._lengths = hashlib.sha256(), hashlib.sha256()

    def update(self, ids: pa.Array) -> None:
        """Add ids; there are no nulls among them."""
        if pa.types.is_integer(ids.type):
            self._values.update(ids.cast(_widest(ids.type)).to_numpy().tobytes())
            return
        array = plain(ids).cast(pa.large_binary())
        if len(array):
            offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[
                array.offset : array.offset + len(array) + 1
            ]
            self._lengths.update(np.diff(offsets).tobytes())
            if data := array.buffers()[2]:
                self._values.update(data.slice(int(offsets[0]), int(offsets[-1] - offsets[0])))

    def hexdigest(self) -> str:
        return hashlib.sha256(self._lengths.digest() + self._values.digest()).hexdigest()


def plain(array: pa.Array) -> pa.Array:
    """`array` without a dictionary."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _widest(kind: pa.DataType) -> pa.DataType:
    return pa.uint64() if pa.types.is_unsigned_integer(kind) else pa.int64()
