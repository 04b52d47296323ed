"""The requests of a batch of rows, as far as they are text at all."""

import numpy as np
import pyarrow as pa

from batch.storage.schema import is_string, plain
from batch.storage.sizes import ROW_BYTES, row_bytes


def read_texts(batch: pa.RecordBatch, text_column: str) -> tuple[list[str | None], dict[int, str]]:
    """The batch's requests, and by their offsets the error codes of those that no contract need judge: their
    bytes are not UTF-8 (None in the list, like a null), or the row holds more than `ROW_BYTES`.
    """
    column = plain(batch.column(text_column))
    refused = {}
    if batch.nbytes > ROW_BYTES:
        refused = {int(row): "too_long" for row in np.flatnonzero(row_bytes(batch) > ROW_BYTES)}
    if pa.types.is_null(column.type):
        return [None] * len(column), refused
    if is_string(column.type):
        try:
            column.validate(full=True)  # nothing else in pyarrow looks at the bytes
            return column.to_pylist(), refused
        except (pa.ArrowInvalid, UnicodeDecodeError):
            pass
    texts: list[str | None] = []
    for offset, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            texts.append(None)
            refused.setdefault(offset, "invalid_utf8")
    return texts, refused
