"""From scored rows to durable shards."""

import time
from collections import Counter

import pyarrow as pa

from batch.job import Job
from batch.reporting.observer import Observer
from batch.reporting.tally import tally_of, with_tally
from batch.scoring.scorer import Scored
from batch.storage.ledger import Ledger

SHARD_ROWS = 16_384  # a shard is committed after so many rows or
SHARD_BYTES = 64 << 20  # so many bytes of input or
SHARD_SECONDS = 10.0  # so many seconds, whichever comes first: what a stop can cost


class ShardWriter:
    """Finished rows that are not yet durable."""

    def __init__(self, job: Job, ledger: Ledger, observer: Observer) -> None:
        self._job, self._ledger, self._observer = job, ledger, observer
        self._clear()

    def add(self, scored: Scored) -> None:
        self._batches.append(scored.batch)
        self._violations += scored.violations
        self._rows += scored.batch.num_rows
        self._bytes += scored.batch.nbytes
        if (
            self._rows >= SHARD_ROWS
            or self._bytes >= SHARD_BYTES
            or time.monotonic() - self._since > SHARD_SECONDS
        ):
            self.commit()

    def commit(self) -> None:
        batches, violations = self._batches, self._violations
        # first: were a signal to come in between, rows must be redone rather than be there twice
        self._clear()
        if batches:
            table = pa.Table.from_batches(batches, self._job.schema)
            answers = self._job.adapters.answers
            tally = tally_of(table, answers, self._job.options.prefix, violations, answers.triage)
            self._ledger.commit(with_tally(table, tally))
            self._observer.committed(tally)

    def _clear(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._violations: Counter[str] = Counter()
        self._rows, self._bytes, self._since = 0, 0, time.monotonic()
