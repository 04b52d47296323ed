"""One unit's scored rows on their way into its part.

What a long unit has is kept as shards on this machine, every so often and when the run is stopped, so that
a kill costs seconds of work and large rows do not fill the memory. Once the receipt is there they are
leftovers.
"""

import hashlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch.reporting.tally import Tally, shard_tally, tally_of, with_tally
from batch.scoring.adapters import Answers
from batch.scoring.scorer import Scored
from batch.storage.hashing import IdDigest
from batch.storage.location import write_file
from batch.storage.output import encode_shard, shard_rows, write_rows
from batch.storage.receipts import Receipt, Receipts, part_name
from batch.storage.store import Store
from batch.storage.units import Unit

SHARD_SECONDS = 10.0  # between two shards: what a kill can cost
SHARD_BYTES = 64 << 20  # held in memory at most


class PartWriter:
    """Takes a unit's rows in order, behind those that an earlier run had kept in `folder`. Each time that
    some of them are durable, `committed` hears of it.
    """

    def __init__(
        self,
        unit: Unit,
        folder: Path,
        schema: pa.Schema,
        answers: Answers,
        prefix: str,
        committed: Callable[[Tally], None],
    ) -> None:
        self.unit = unit
        self._folder, self._schema, self._answers, self._prefix = folder, schema, answers, prefix
        self._committed = committed
        found = _found(folder, unit)
        self._shards, self.rows = _whole(found, unit)
        for path in found:
            if path not in self._shards:
                path.unlink(missing_ok=True)
        self._clear()

    @property
    def full(self) -> bool:
        return bool(self.rows == self.unit.rows)

    def add(self, scored: Scored) -> None:
        self._batches.append(scored.batch)
        self._violations += scored.violations
        self.rows += scored.batch.num_rows
        self._bytes += scored.batch.nbytes
        late = time.monotonic() - self._since > SHARD_SECONDS
        if not self.full and (late or self._bytes > SHARD_BYTES):
            self.save()

    def save(self) -> None:
        """Keep what is done of the unit. Raises `StorageError`."""
        if not self._batches:
            return
        table = pa.Table.from_batches(self._batches, self._schema)
        tally = self._tally_of(table)
        # first: if a signal comes in between, rows must be redone rather than duplicated
        self._clear()
        data = encode_shard(with_tally(table, tally))
        path = self._folder / _shard_name(self.unit, self.rows - table.num_rows, data)
        write_file(path, data, unique=True)
        self._shards.append(path)
        self._committed(tally)

    def finish(self, store: Store, id_column: str, engine: dict[str, Any], job: str) -> tuple[Receipt, Tally]:
        """Write the part, whose bytes depend on its rows alone; returns with its receipt, for the `job` (its
        fingerprint), the tally of the rows that were not kept before. Raises `StorageError`.
        """
        table = pa.Table.from_batches(self._batches, self._schema).combine_chunks()
        tally, ids, attempt = self._tally_of(table), IdDigest(), secrets.token_hex(8)
        shards = tuple(self._shards)  # a run that is stopped may keep this part's rows meanwhile
        name = part_name(self.unit.index, attempt)

        def rows() -> Iterator[pa.RecordBatch]:
            for batches in (shard_rows(shards, self._schema), table.to_batches()):
                for batch in batches:
                    ids.update(batch.column(id_column))
                    yield batch

        with store.writing(name) as location:
            write_rows(location, rows(), self._schema)
            sha256, size = location.sha256(), location.stamp()[0]
        whole = sum(map(shard_tally, shards), tally)
        receipt = Receipt(
            unit=self.unit.index,
            start=self.unit.start,
            rows=self.unit.rows,
            ids=ids.hexdigest(),
            part=name,
            sha256=sha256,
            size=size,
            tally=whole.as_json(),
            engine=engine,
            attempt=attempt,
            job=job,
        )
        return receipt, tally

    def forget(self) -> None:
        """Remove the shards, once the receipt is there."""
        for path in self._shards:
            path.unlink(missing_ok=True)

    def _tally_of(self, table: pa.Table) -> Tally:
        return tally_of(table, self._answers, self._prefix, self._violations, self._answers.triage)

    def _clear(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._violations: Counter[str] = Counter()
        self._bytes, self._since = 0, time.monotonic()


def kept_shards(folder: Path, unit: Unit) -> list[Path]:
    """The shards of a unit that are whole, up to the first that is missing or damaged."""
    return _whole(_found(folder, unit), unit)[0]


def _whole(found: list[Path], unit: Unit) -> tuple[list[Path], int]:
    """Those that follow each other without a gap, and their rows. A process that was given up may still
    write: what it cut elsewhere is passed over.
    """
    kept, rows = list[Path](), 0
    for path in found:
        data = path.read_bytes()
        if path.name == _shard_name(unit, rows, data):
            kept.append(path)
            rows += pq.read_metadata(pa.BufferReader(data)).num_rows
    return kept, rows


def kept_tally(receipts: Receipts, units: Iterable[Unit], folder: Path) -> Tally:
    """Of all rows of the `units` that are durable: in parts, or in shards of those that are not done."""
    tally = sum((Tally.from_json(receipt.tally) for receipt in receipts), Tally())
    unfinished = {int(path.name.partition("-")[0]) for path in folder.glob("[0-9]*-*-*.parquet")}
    for unit in units:
        if unit.index in unfinished and unit.index not in receipts:
            tally = sum(map(shard_tally, kept_shards(folder, unit)), tally)
    return tally


def _found(folder: Path, unit: Unit) -> list[Path]:
    start = f"{unit.index:05d}-"  # not a glob: the folder holds the parts of all other units
    names = [name for name in os.listdir(folder) if name.startswith(start) and name.count("-") == 2]
    return [folder / name for name in sorted(names) if name.endswith(".parquet")]


def _shard_name(unit: Unit, start: int, data: bytes | pa.Buffer) -> str:
    """`start` is the first row, counted from the unit's."""
    return f"{unit.index:05d}-{start:05d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
