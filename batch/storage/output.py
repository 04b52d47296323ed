"""Parquet out: the output's schema, shards, and the file that they are assembled into."""

import base64
import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch.background import one_ahead
from batch.contract.fields import LIST, HasFields
from batch.errors import ContractError, InputError, StorageError
from batch.storage.footer import AnnotatingSink, old_timestamps
from batch.storage.hashing import IdDigest
from batch.storage.location import Location, reason, refused_or_failed
from batch.storage.manifest import Proof, remove_manifest
from batch.storage.parquet import FAILURES, LOCAL_BUFFER, REMOTE_BUFFER, ParquetSource
from batch.storage.schema import conformed, without_zone
from batch.storage.sizes import BATCH_BYTES, row_bytes
from batch.storage.store import store_at
from batch.storage.unify import ANNOTATIONS, carried_metadata

ROW_GROUP = 16_384  # rows in a row group of the output, and
GROUP_BYTES = 32 << 20  # bytes of strings, whichever comes first
BATCH_ROWS = 4096  # rows of a shard that are decoded at once, or `BATCH_BYTES` of them
# Page checksums: without them half of all bit flips in a zstd file read back as wrong data without an error.
WRITING = {"compression": "zstd", "write_page_checksum": True, "version": "2.6"}
# by the name that a contract's field gives it
ARROW = {"string": pa.string(), "bool": pa.bool_(), "int64": pa.int64(), LIST: pa.list_(pa.string())}
FIXED = {  # the columns that a run adds whatever the contract
    "score": pa.float32(),
    **dict.fromkeys(("status", "error_code", "error", "adapter"), pa.string()),
}


def output_columns(answers: HasFields, prefix: str = "", triage: bool = False) -> list[str]:
    """Names of the columns that a run adds, in order. Raises `ContractError` where two would be the same.

    `triage` is there where the adapter has a threshold, `<field>_model` and `rules_applied` where the
    contract enforces.
    """
    return [field.name for field in _added(answers, prefix, triage)]


def output_schema(schema: pa.Schema, answers: HasFields, prefix: str = "", triage: bool = False) -> pa.Schema:
    """Every input column as it is, with its metadata, then those that a run adds, which may all be null.

    Labels are plain strings: Parquet codes them by dictionary anyway, and every reader sees the same type.
    Raises `InputError` for a column that can be read but not written.
    """
    added = _added(answers, prefix, triage)
    return pa.schema([*schema, *added], carried_metadata(schema, added))


def _added(answers: HasFields, prefix: str, triage: bool) -> list[pa.Field]:
    kinds = {field.name: ARROW[field.arrow] for field in answers.fields}
    columns = list(kinds.items())
    columns += [(f"{field.name}_score", pa.float32()) for field in answers.scored_fields]
    columns += [
        (f"{field.name}_label_scores", pa.list_(pa.float32()))
        for field in answers.scored_fields
        if field.arrow == LIST
    ]
    ranked = [field.name for field in answers.scored_fields if field.ranked]
    columns += [(f"{name}_second", kinds[name]) for name in ranked]
    columns += [(f"{name}_second_score", pa.float32()) for name in ranked]
    columns += FIXED.items()
    columns += [("triage", pa.string())] if triage else []
    columns += [(f"{field.name}_model", kinds[field.name]) for field in answers.enforced_fields]
    columns += [("rules_applied", pa.string())] if answers.enforce_rules else []
    names = [name for name, _ in columns]
    for name in names:
        if names.count(name) > 1:
            raise ContractError(f"the contract's fields give two output columns {name!r}; rename the field")
    return [pa.field(prefix + name, kind) for name, kind in columns]


@contextlib.contextmanager
def parquet_writer(sink: Any, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Writes a file of the output to `sink`, which stays open: `schema` with its metadata is the file's, and
    what Arrow cannot tell of the input's types (`ANNOTATIONS`) goes into the footer.

    A timestamp of old, which pyarrow reads as one in UTC, is one without a zone to readers that go by the
    Arrow schema where there is one, as Polars does: there it has none.
    """
    metadata = dict(schema.metadata or {})
    wanted = json.loads(metadata.pop(ANNOTATIONS, b"{}"))
    target = AnnotatingSink(sink, wanted) if wanted else sink
    schema, old = schema.with_metadata(metadata), old_timestamps(wanted)
    with pq.ParquetWriter(target, schema, store_schema=not old, **WRITING) as writer:
        yield writer
        if old:
            fields = [without_zone(field) if field.name in old else field for field in schema]
            arrow = pa.schema(fields, metadata).serialize().to_pybytes()
            writer.add_key_value_metadata({**metadata, b"ARROW:schema": base64.b64encode(arrow)})
        if wanted:
            target.hold()
    if wanted:
        target.release()


def encode_shard(table: pa.Table) -> pa.Buffer:
    """`table` as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=max(1, table.num_rows), **WRITING)
    return sink.getvalue()


def assemble(
    shards: Iterable[Location | Path],
    output: str,
    schema: pa.Schema,
    metadata: Mapping[str, str],
    id_column: str = "id",
    expect: tuple[int, str] | None = None,
    replaces: str | None = None,
    size: int = 0,
) -> Proof:
    """Write the shards' rows, in order, as the file `output`, and prove it from the finished file.

    The bytes depend on the rows, `schema` and `metadata` alone, not on where the shards were cut: keep times
    and run ids out of `metadata`. Holds two row groups in memory. `expect` is the input's row count and
    ordered id digest; where the rows differ, or anything fails, an older output and its manifest stay
    (`StorageError`). `replaces` is the version of that manifest, `size` about that of the file in bytes.
    """
    location = Location.of(output)
    schema = schema.with_metadata({**(schema.metadata or {}), **metadata})
    passed, ids = 0, IdDigest()

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal passed
        for batch in shard_rows(shards, schema):
            passed += batch.num_rows
            ids.update(batch.column(id_column))
            yield batch

    def write(sink: Any) -> None:
        encode_rows(sink, rows(), schema)
        _compare(location, (passed, ids.hexdigest()), expect)

    def check(file: Location) -> Proof:
        proof = prove(file, id_column)
        _compare(location, (proof.rows, proof.ids), expect)
        return proof

    # the old manifest speaks of the output that goes now
    last = functools.partial(remove_manifest, output, replaces)
    proof = store_at(location.folder).assemble(location.base, size, write, check, last)
    pa.default_memory_pool().release_unused()
    return proof


def _compare(output: Location, found: tuple[int, str], expect: tuple[int, str] | None) -> None:
    if expect is not None and found != tuple(expect):
        what = (
            f"{found[0]} rows for {expect[0]}" if found[0] != expect[0] else "the ids or their order differ"
        )
        raise StorageError(
            f"the assembled {output.name} is not its input's rows: {what}; run again with --fresh"
        )


def write_rows(location: Location, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write a Parquet file on this machine."""
    with location.filesystem.open_output_stream(location.path) as sink:
        encode_rows(sink, batches, schema)


def encode_rows(sink: Any, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write a Parquet file whose bytes depend on the rows and `schema` alone, not on where batches end."""
    with parquet_writer(sink, schema) as writer:
        for group in one_ahead(_row_groups(batches, schema)):
            writer.write_table(group, row_group_size=group.num_rows)


def prove(location: Location, id_column: str = "id", total: IdDigest | None = None) -> Proof:
    """Row count, ordered id digest and sha256 of a file that this run has written; decodes every page, and
    adds its ids to the `total` of several files. Raises `StorageError`.
    """
    try:
        source, ids = read_back(location, id_column, total)
    except InputError as error:
        raise StorageError(f"the output does not read back: {error}") from error
    columns, sha256 = tuple(source.schema.names), location.sha256()
    return Proof(source.rows, ids, sha256, source.size, columns, stamp=source.modified_ns)


def read_back(location: Location, id_column: str, total: IdDigest | None = None) -> tuple[ParquetSource, str]:
    """A file whose every page was decoded, and its ordered id digest; its ids are added to the `total` of
    several files. Raises `InputError`, `StorageError`.
    """
    source, digest = ParquetSource.open(location), IdDigest()
    for batch in source.batches():
        for each in filter(None, (digest, total)):
            each.update(batch.column(id_column))
    return source, digest.hexdigest()


def check_bytes(file: Location, told: Mapping[str, Any]) -> None:
    """Raises `InputError` where a finished file is not, byte for byte, the one that its manifest speaks of.

    To be asked before the file is parsed, since Parquet's reader ends the process on some damaged files.
    """
    what = f"cannot read {file.name}"
    try:
        same = file.stamp()[0] == told["bytes"] and file.sha256() == told["sha256"]
    except OSError as error:
        raise refused_or_failed(what, error, "run batch-route again with --fresh") from error
    except pa.ArrowException as error:
        raise StorageError(f"{what}: {reason(error)}; run again") from error
    if not same:
        raise InputError(f"{file.name} has other bytes than its manifest says; run again with --fresh")


def shard_rows(shards: Iterable[Location | Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of files that a run wrote, in order. Raises `StorageError`."""
    for shard in shards:
        location = shard if isinstance(shard, Location) else Location.of(shard)
        try:
            yield from _own_batches(location, schema)
        except FAILURES as error:
            what = f"a shard is damaged: {location.name}: {reason(error)}"
            raise StorageError(f"{what}; run again, it is redone") from error


def _own_batches(location: Location, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a file that :func:`write_rows` or :func:`encode_shard` made: `GROUP_BYTES` or what a run
    holds bounds its groups, so unlike in others' files nothing has to be found out before they are decoded.
    """
    with location.open() as handle:
        buffer = LOCAL_BUFFER if location.local else REMOTE_BUFFER
        file = pq.ParquetFile(handle, pre_buffer=False, buffer_size=buffer, page_checksum_verification=True)
        if file.schema_arrow.names != schema.names:
            raise ValueError("it has other columns than the output")
        for group in range(file.num_row_groups):  # one at a time: a batch would span several, and their bytes
            held = file.metadata.row_group(group)
            size = min(BATCH_ROWS, max(1, held.num_rows * BATCH_BYTES // max(1, held.total_byte_size)))
            for batch in file.iter_batches(size, row_groups=[group], use_threads=False):
                arrays = [conformed(batch.column(field.name), field.type) for field in schema]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows cut where a group reaches `ROW_GROUP` rows or `GROUP_BYTES`: a function of the rows alone."""
    pending: list[pa.RecordBatch] = []
    rows = held = 0
    for batch in batches:
        sizes = row_bytes(batch)
        while batch.num_rows:
            ends = np.cumsum(sizes)
            take = min(batch.num_rows, ROW_GROUP - rows, int(np.searchsorted(ends, GROUP_BYTES - held)) + 1)
            pending.append(batch.slice(0, take))
            rows, held = rows + take, held + int(ends[take - 1])
            batch, sizes = batch.slice(take), sizes[take:]
            if rows == ROW_GROUP or held >= GROUP_BYTES:
                yield _one_chunk(pending, schema)
                pending, rows, held = [], 0, 0
    if pending:
        yield _one_chunk(pending, schema)


def _one_chunk(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """The batches as one: pages end where chunks do, and a dictionary's order would tell where shards were
    cut.
    """
    columns = []
    for index, field in enumerate(schema):
        arrays = [batch.column(index) for batch in batches]
        if pa.types.is_dictionary(field.type) and not field.type.ordered:
            whole = pa.concat_arrays([array.dictionary_decode() for array in arrays])
            columns.append(whole.dictionary_encode().cast(field.type))
        else:  # an ordered one has the same dictionary in every shard
            columns.append(pa.concat_arrays(arrays))
    return pa.Table.from_arrays(columns, schema=schema)
