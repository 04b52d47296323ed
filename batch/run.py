"""The main path: a Parquet backlog → scored Parquet.

check everything cheap → start the engine → read, route, commit shards → assemble, prove, manifest
"""

import contextlib
import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pyarrow as pa

from batch import __version__, drift
from batch.adapters import Adapters, engine_needs, lane_of, spec_of
from batch.bundle import Bundle
from batch.cache import known_answers
from batch.engine import EngineSpec
from batch.engine.supervisor import Supervisor
from batch.errors import AdapterError
from batch.events import emit
from batch.interrupt import signals_raise
from batch.job import Job, Options, check, read_batches, work_dir_of
from batch.lane import INVALID_UTF8, Lane, ScoredRow
from batch.ledger import RETRY_OF, Ledger
from batch.lock import lock_output
from batch.manifest import Proof, finished, write_manifest
from batch.outcome import output_batch
from batch.retry import Retry
from batch.router import Counts, Mixed, Router
from batch.summary import Summary, Tally, shard_tally, with_tally
from batch.table import assemble

__all__ = ["EngineFor", "Job", "Options", "Progress", "check", "engine_spec", "run", "start_engine"]

WINDOW = 4  # requests with the engine at most, in multiples of what it runs at once: it never waits for more
SHARD_ROWS = 16_384  # a shard is committed after so many rows or
SHARD_BYTES = 64 << 20  # so many bytes of input or
SHARD_SECONDS = 10.0  # so many seconds, whichever comes first: what a stop can cost

Progress = Callable[[Counts, int], None]  # (counts of this run, rows in all, resumed ones left out)
EngineFor = Callable[[Job], AbstractContextManager[Supervisor]]


def run(options: Options, progress: Progress | None = None, summary: Summary | None = None, engine_for: EngineFor | None = None) -> Summary:
    """Route a backlog. Raises a `BatchRouteError`; whatever stops it, a rerun resumes from the last shard.

    `summary` is filled in as the run goes on, so that who gave it knows of a failed run as well. `engine_for` gives the
    engine for a job, by default a new one.
    """
    started = time.monotonic()
    with lock_output(options.output), signals_raise():
        return _run(options, progress, summary or Summary(), started, engine_for or start_engine)


def _run(options: Options, progress: Progress | None, summary: Summary, started: float, engine_for: EngineFor) -> Summary:
    job = check(options)
    emit(
        "checked",
        rows=job.rows,
        input=job.backlog.source,
        adapters=[bundle.digest for bundle in job.adapters.served],
        base=str(job.adapters.default.base["ref"]),
    )
    work_dir = work_dir_of(options)
    manifest = finished(options.output, job.facts)
    facts = job.facts
    if options.retry_errors:
        retry = Retry.of(options.output, job.facts, manifest, work_dir, len(job.backlog.schema))
        job, facts = dataclasses.replace(job, retry=retry), {**facts, RETRY_OF: retry.sha256}
    if manifest and (not job.retry.rows if job.retry else not options.fresh):
        if work_dir.exists():  # killed after the manifest, before the work directory went
            Ledger.open(work_dir, job.facts, fresh=True).finish()
        return summary.adopt(manifest)
    earlier = drift.baseline(options.output, job.facts)  # before its manifest is replaced
    with Ledger.open(work_dir, facts, options.fresh, options.output) as ledger:
        summary.resumed_rows, summary.retry = ledger.done_rows, job.retry is not None
        try:
            if ledger.done_rows < job.rows:
                with engine_for(job) as engine:
                    _route(job, ledger, engine, summary, progress, started)
        finally:
            summary.tally = sum((shard_tally(shard) for shard in ledger.shards), Tally())
        proof = _assemble(job, ledger)
        summary.drift = drift.compare(earlier, summary.tally)
        summary.seconds = time.monotonic() - started
        write_manifest(options.output, job.facts, proof, run=summary.as_json(), drift=summary.drift)
        ledger.finish()
    emit("assembled", rows=proof.rows, bytes=proof.bytes, sha256=proof.sha256)
    return summary


def start_engine(job: Job) -> Supervisor:
    """Start the engine's process and return at once; it loads while the parent goes on."""
    return Supervisor(engine_spec(job), job.options.engine_timeout)


def engine_spec(job: Job) -> EngineSpec:
    options = job.options
    return EngineSpec(
        kind=options.engine,
        **engine_needs(job.adapters.served, job.base),
        max_num_seqs=options.max_num_seqs,
        dtype=options.dtype,
        threads=options.threads,
        draft_tokens=options.draft_tokens,
    )


def _load_first(engine: Supervisor, adapters: Adapters) -> tuple[Bundle, dict[str, Any]]:
    """Have the first adapter that serves loaded; where rows name theirs, one that does not is only its rows' error."""
    *others, last = adapters.served
    for bundle in others:
        with contextlib.suppress(AdapterError):
            return bundle, engine.load(spec_of(bundle))
    return last, engine.load(spec_of(last))


def _route(job: Job, ledger: Ledger, engine: Supervisor, summary: Summary, progress: Progress | None, started: float) -> None:
    repeated = job.backlog.repeated_texts()  # while the engine starts
    first, canary = _load_first(engine, job.adapters)
    summary.engine = {**engine.facts, "canary": canary}
    emit("engine ready", **engine.facts)
    begun = time.monotonic()

    def on_progress(counts: Counts) -> None:
        if summary.seconds_to_first_row is None and counts.inferred:
            summary.seconds_to_first_row = time.monotonic() - started
        summary.pace.note(time.monotonic() - begun, counts.rows)
        if progress:
            progress(counts, job.retry.rows if job.retry else job.rows - summary.resumed_rows)

    inputs: deque[pa.RecordBatch] = deque()  # read ahead of the engine, waiting for their scores
    lanes: dict[str, Lane] = {bundle.digest: lane_of(bundle) for bundle in job.adapters.served} if job.adapters.column else {}

    def requests() -> Iterator[Sequence[Any] | Mixed]:
        for batch in read_batches(job, ledger.done_rows):
            inputs.append(batch)
            wanted = job.retry.again(batch) if job.retry else batch
            texts, invalid = job.backlog.texts(wanted)
            values = [INVALID_UTF8 if i in invalid else text for i, text in enumerate(texts)] if invalid else texts
            yield Mixed(values, [lanes[bundle.digest] if bundle else None for bundle in job.adapters.rows(wanted)]) if lanes else values

    facts = {"version": __version__, "base": job.facts["base"], **engine.facts}
    with known_answers(facts, ledger.answers, repeated, job.options.cache, job.options.cache_max) as known:
        window = WINDOW * engine.facts["max_num_seqs"]
        router = Router(engine, spec_of(first), first.contract, first.renderer, window, on_progress, known)
        summary.counts = router.counts
        shard = _Shard(job, ledger)
        try:
            for rows in router.route(requests()):
                shard.add(inputs.popleft(), rows)
        finally:
            shard.commit()  # also when interrupted: what is done is kept
            summary.engine |= {"restarts": engine.restarts, "usage": engine.usage._asdict()}
            summary.routing_seconds = time.monotonic() - begun


class _Shard:
    """Finished rows that are not yet durable."""

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self._job, self._ledger = job, ledger
        self._clear()

    def add(self, batch: pa.RecordBatch, rows: Sequence[ScoredRow]) -> None:
        if retry := self._job.retry:
            self._violations += retry.violations(batch, self._job.backlog.texts(batch)[0], self._job.adapters.rows(batch))
            self._batches.append(retry.merged(batch, self._output(retry.again(batch), rows)))
        else:
            self._batches.append(self._output(batch, rows))
        self._violations.update(name for row in rows for name in row.violations)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= SHARD_ROWS or self._bytes >= SHARD_BYTES or time.monotonic() - self._since > SHARD_SECONDS:
            self.commit()

    def _output(self, batch: pa.RecordBatch, rows: Sequence[ScoredRow]) -> pa.RecordBatch:
        adapters = self._job.adapters
        return output_batch(batch, rows, adapters.rows(batch), adapters.answers, self._job.schema)

    def commit(self) -> None:
        batches, violations = self._batches, self._violations
        self._clear()  # first: were a signal to come in between, rows must be redone rather than be there twice
        if batches:
            table = pa.Table.from_batches(batches, self._job.schema)
            answers = self._job.adapters.answers
            self._ledger.commit(with_tally(table, answers, self._job.options.prefix, violations, answers.triage))
            emit("shard committed", rows=table.num_rows, done_rows=self._ledger.done_rows, of=self._job.rows)

    def _clear(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._violations: Counter[str] = Counter()
        self._rows, self._bytes, self._since = 0, 0, time.monotonic()


def _assemble(job: Job, ledger: Ledger) -> Proof:
    """Write the output from the shards and prove it against the input."""
    metadata = {
        "batch_route.version": __version__,
        "batch_route.adapter": ",".join(bundle.digest for bundle in job.adapters.served),
        "batch_route.contract": ",".join(dict.fromkeys(bundle.contract.fingerprint for bundle in job.adapters.served)),
        "batch_route.engine": job.options.engine,
    }
    return assemble(ledger.shards, job.options.output, job.schema, metadata, job.options.id_column, (job.rows, job.id_digest))
