"""Which columns can be written: some that Arrow reads have no type in Parquet, or read back as another."""

import pyarrow as pa
import pyarrow.parquet as pq

from batch.errors import InputError
from batch.storage.differences import SHOWN, children
from batch.storage.output import WRITING
from batch.storage.schema import as_read


def check_can_be_written(schema: pa.Schema) -> None:
    """Raises `InputError` for a column that can be read but not written, or reads back as another type."""
    for field in schema:
        _try_to_write(field)


def _try_to_write(field: pa.Field) -> None:
    schema, sink = pa.schema([field]), pa.BufferOutputStream()
    try:
        pq.ParquetWriter(sink, schema, **WRITING).close()  # Arrow makes no empty table of nested extensions
        back = pq.read_schema(pa.BufferReader(sink.getvalue()))
    except (pa.ArrowException, ValueError, TypeError) as error:
        _try_children(field)
        what = f"column {field.name!r} is {str(field.type)[:SHOWN]}, which Parquet cannot hold"
        raise InputError(f"{what}; convert it") from error
    if not pa.schema(list(map(as_read, back))).equals(schema):
        _try_children(field)
        what = f"column {field.name!r} would be {str(back.field(0).type)[:SHOWN]} when read back"
        raise InputError(f"{what}; convert it")


def _try_children(field: pa.Field) -> None:
    """Of a nested column refuse the innermost part that cannot be written, which the column's type would say
    too late.
    """
    for name, kind in children(field.type):
        _try_to_write(pa.field(field.name + name, kind))
