"""How many bytes rows hold: what bounds batches, shards and row groups."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from batch.storage.hashing import Int64s
from batch.storage.schema import is_binary, is_list, is_string

BATCH_BYTES = 16 << 20  # strings and nested values in one batch, decoded
DECODED_BYTES = 32 << 20  # of all columns together, before they are cut into such batches
ROW_BYTES = 16 << 20  # of them in one row: with more it is not routed, its error is `too_long`
WIDTH = 8  # bytes of a number in a file, at least
FEW_BYTES = 64  # of a value whose length is fixed: a UUID, a digest
MOST_ROW_BYTES = 256 << 20  # with more the file is refused


def row_bytes(batch: pa.RecordBatch | pa.Table) -> Int64s:
    """Bytes of strings and nested values in each row, int64 [rows]; numbers and UUIDs are not counted."""
    sizes: Int64s = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if not _fixed(column.type):
            sizes += value_bytes(column)
    return sizes


def value_bytes(column: pa.Array | pa.ChunkedArray) -> Int64s:
    """Bytes of each value, int64 [rows]; 0 for a null."""
    if isinstance(column, pa.ChunkedArray):
        chunks = [np.zeros(0, dtype=np.int64), *map(value_bytes, column.chunks)]
        joined: Int64s = np.concatenate(chunks)
        return joined
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return value_bytes(column.storage)
    if types.is_dictionary(kind):
        sizes = value_bytes(column.dictionary)
        held: Int64s = np.append(sizes, 0)[_filled(column.indices, len(sizes))]
        return held
    if is_string(kind) or is_binary(kind):
        views = types.is_string_view(kind) or types.is_binary_view(kind)
        # binary_length has no kernel for views
        return _filled(pc.binary_length(column.cast(pa.large_binary()) if views else column), 0)
    if types.is_struct(kind):
        fields = [value_bytes(column.field(index)) for index in range(kind.num_fields)]
        return sum(fields, np.zeros(len(column), dtype=np.int64))
    if types.is_map(kind):
        return _spans(column, value_bytes(column.keys) + value_bytes(column.items))
    if types.is_fixed_size_list(kind):
        values: Int64s = value_bytes(column.values).reshape(-1, max(1, kind.list_size)).sum(axis=1)
        return values[column.offset : column.offset + len(column)] if kind.list_size else _zeros(column)
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        starts = column.offsets.to_numpy(zero_copy_only=False)
        ends = _ends(value_bytes(column.values))
        return _filled(pa.array(ends[starts + column.sizes.to_numpy(zero_copy_only=False)] - ends[starts]), 0)
    if is_list(kind):
        return _spans(column, value_bytes(column.values))
    return _zeros(column) + (0 if types.is_null(kind) else max(1, kind.bit_width // 8))


def _spans(column: pa.Array, sizes: Int64s) -> Int64s:
    """Sums of the values' `sizes` from each list's first to its last."""
    spans: Int64s = np.diff(_ends(sizes)[column.offsets.to_numpy(zero_copy_only=False)])
    return spans


def _ends(sizes: Int64s) -> Int64s:
    ends: Int64s = np.concatenate(([0], np.cumsum(sizes)))
    return ends


def _zeros(column: pa.Array) -> Int64s:
    return np.zeros(len(column), dtype=np.int64)


def _filled(lengths: pa.Array, missing: int) -> Int64s:
    whole = lengths.cast(pa.int64())
    filled: Int64s = (pc.fill_null(whole, missing) if whole.null_count else whole).to_numpy()
    return filled


def _fixed(kind: pa.DataType) -> bool:
    few = types.is_fixed_size_binary(kind) and kind.byte_width <= FEW_BYTES
    return bool(types.is_primitive(kind) or types.is_null(kind) or few)


def cuts(sizes: Int64s, limit: int) -> Iterator[tuple[int, int]]:
    """Runs ``(start, end)`` of rows that hold at most `limit` bytes each, or one row."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start] - sizes[start]
        end = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield start, end
        start = end


def safe_rows(file: pq.ParquetFile, group: int) -> int:
    """Rows of the row group that may be decoded at once. `file` reads texts as dictionaries, unexpanded."""
    meta = file.metadata.row_group(group)
    largest = whole = 1.0  # bytes a row, of one column and of all: the means, or what may be repeated
    for index in range(meta.num_columns):
        column = meta.column(index)
        width = max(WIDTH, column.total_uncompressed_size / max(1, column.num_values))
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
            width = max(width, file.schema.column(index).length)  # a dictionary may repeat it
        elif column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
            width = max(width, _longest(file, group, column.path_in_schema))
        width *= column.num_values / max(1, meta.num_rows)
        largest, whole = max(largest, width), whole + width
    return max(1, int(min(BATCH_BYTES / largest, DECODED_BYTES / whole)))


def text_leaves(file: pq.ParquetFile) -> list[str]:
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
