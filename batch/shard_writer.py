"""From scored rows to durable shards."""

import time
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from batch.events import emit
from batch.job import Job
from batch.reporting.summary import with_tally
from batch.scoring.lane import ScoredRow
from batch.scoring.output_rows import output_batch
from batch.storage.ledger import Ledger

SHARD_ROWS = 16_384  # a shard is committed after so many rows or
SHARD_BYTES = 64 << 20  # so many bytes of input or
SHARD_SECONDS = 10.0  # so many seconds, whichever comes first: what a stop can cost


class ShardWriter:
    """Finished rows that are not yet durable."""

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self._job, self._ledger = job, ledger
        self._clear()

    def add(self, batch: pa.RecordBatch, rows: Sequence[ScoredRow]) -> None:
        if retry := self._job.retry:
            self._violations += retry.violations(
                batch, self._job.backlog.texts(batch)[0], self._job.adapters.rows(batch)
            )
            self._batches.append(retry.merged(batch, self._output(retry.again(batch), rows)))
        else:
            self._batches.append(self._output(batch, rows))
        self._violations.update(name for row in rows for name in row.violations)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if (
            self._rows >= SHARD_ROWS
            or self._bytes >= SHARD_BYTES
            or time.monotonic() - self._since > SHARD_SECONDS
        ):
            self.commit()

    def _output(self, batch: pa.RecordBatch, rows: Sequence[ScoredRow]) -> pa.RecordBatch:
        adapters = self._job.adapters
        return output_batch(batch, rows, adapters.rows(batch), adapters.answers, self._job.schema)

    def commit(self) -> None:
        batches, violations = self._batches, self._violations
        # first: were a signal to come in between, rows must be redone rather than be there twice
        self._clear()
        if batches:
            table = pa.Table.from_batches(batches, self._job.schema)
            answers = self._job.adapters.answers
            self._ledger.commit(
                with_tally(table, answers, self._job.options.prefix, violations, answers.triage)
            )
            emit("shard committed", rows=table.num_rows, done_rows=self._ledger.done_rows, of=self._job.rows)

    def _clear(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._violations: Counter[str] = Counter()
        self._rows, self._bytes, self._since = 0, 0, time.monotonic()
