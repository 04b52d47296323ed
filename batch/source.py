"""Where a run's rows come from: the backlog, or with `--retry-errors` the finished output with its errors."""

from collections.abc import Iterator
from typing import Any, Protocol

import pyarrow as pa

from batch.job import Job
from batch.launch.worker import Rows
from batch.retry import Retry
from batch.scoring.scorer import Chunk
from batch.storage.manifest import finished


class Source(Rows, Protocol):
    """The rows of a job, and what is known of them before."""

    facts: dict[str, Any]  # what must be the same for a later run to resume this one
    asks: int  # rows to score
    repeats: bool  # whether they were scored before

    def finished(self) -> dict[str, Any] | None:
        """The manifest of the output, if it is complete and this source has nothing to add to it."""


class Unscored:
    """The backlog's rows, each to score."""

    repeats = False

    def __init__(self, job: Job) -> None:
        self._job, self.facts, self.asks = job, job.facts, job.rows

    def finished(self) -> dict[str, Any] | None:
        options = self._job.options
        return None if options.fresh else finished(options.output, self.facts)

    def batches(self, start: int, size: int) -> Iterator[pa.RecordBatch]:
        return self._job.backlog.batches(start, size, stop_row=self._job.rows)

    def chunk(self, batch: pa.RecordBatch) -> Chunk:
        return Chunk(batch)


def source_of(job: Job) -> Source:
    """Raises `InputError` where there is no finished output to retry."""
    return Retry.of(job) if job.options.retry_errors else Unscored(job)
