"""The main path: a Parquet backlog → scored Parquet.

check everything cheap → start the engine → read, route, commit shards → assemble, prove, manifest
"""

import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pyarrow as pa

from batch import __version__
from batch.adapter.bundle import Bundle
from batch.engine import EngineSpec
from batch.engine.supervisor import Supervisor
from batch.errors import EXIT_TOO_MANY_ERRORS, AdapterError, BatchRouteError, Interrupted, signals_raise
from batch.events import emit, json_lines
from batch.job import Job, Options, check, read_batches, work_dir_of
from batch.reporting import drift
from batch.reporting.outlets import Outlets
from batch.reporting.prometheus import write_metrics
from batch.reporting.summary import Summary, Tally, shard_tally
from batch.retry import Retry
from batch.scoring.adapters import Adapters, engine_needs, lane_of, spec_of
from batch.scoring.cache import known_answers
from batch.scoring.lane import INVALID_UTF8, Lane
from batch.scoring.router import Counts, Mixed, Router
from batch.shard_writer import ShardWriter
from batch.storage.ledger import RETRY_OF, Ledger
from batch.storage.location import shown
from batch.storage.lock import lock_output
from batch.storage.manifest import Proof, finished, write_manifest
from batch.storage.output import assemble

WINDOW = 4  # requests with the engine at most, in multiples of what it runs at once: it never waits for more

Progress = Callable[[Counts, int], None]  # (counts of this run, rows in all, resumed ones left out)
EngineFor = Callable[[Job], AbstractContextManager[Supervisor]]


def operate(
    options: Options, outlets: Outlets, progress: Progress | None = None, engine_for: EngineFor | None = None
) -> Summary:
    """Route a backlog and tell of it. Raises what :func:`run` raises, after it was told.

    Metrics are written of a failed run too; the report only of a finished output.
    """
    summary = Summary()
    with (
        json_lines(summary.run_id) if outlets.log_json else contextlib.nullcontext(),
        _told(options, outlets, summary),
    ):
        outlets.check()
        run(options, progress, summary, engine_for)
        if outlets.report:
            from batch.reporting.html import write_report  # it loads polars, which only a report needs

            write_report(outlets.report, options.output)
    return summary


@contextlib.contextmanager
def _told(options: Options, outlets: Outlets, summary: Summary) -> Iterator[None]:
    """Events and metrics around a run."""
    started = time.monotonic()
    emit(
        "start",
        version=__version__,
        input=shown(options.input),
        output=shown(options.output),
        adapter=options.adapter,
    )
    try:
        yield
    except BaseException as error:
        code, message = _told_of(error)
        emit("error", logging.ERROR, exit_code=code, message=message)
        summary.seconds = time.monotonic() - started
        if outlets.metrics:
            with contextlib.suppress(BatchRouteError, OSError):  # the error above is the one to tell
                write_metrics(outlets.metrics, summary, code, time.time())
        raise
    summary.seconds = time.monotonic() - started
    tally = summary.tally
    code = EXIT_TOO_MANY_ERRORS if tally.error_rate > options.max_error_rate else 0
    if outlets.metrics:
        write_metrics(outlets.metrics, summary, code, time.time())
    emit(
        "done",
        exit_code=code,
        already_done=summary.already_done,
        rows=tally.rows,
        resumed_rows=summary.resumed_rows,
        errors=dict(tally.errors),
        violations=dict(tally.violations),
        rows_per_second=summary.rows_per_second,
        seconds=summary.seconds,
    )


def _told_of(error: BaseException) -> tuple[int, str]:
    """Exit code and message. Only our own messages are known to hold no request text; of others the type must
    do.
    """
    if isinstance(error, BatchRouteError):
        return error.exit_code, str(error)
    if isinstance(error, Interrupted):
        return error.exit_code, str(error)
    code = 130 if isinstance(error, KeyboardInterrupt) else 75 if isinstance(error, OSError) else 1
    return code, type(error).__name__


def run(
    options: Options,
    progress: Progress | None = None,
    summary: Summary | None = None,
    engine_for: EngineFor | None = None,
) -> Summary:
    """Route a backlog. Raises a `BatchRouteError`; whatever stops it, a rerun resumes from the last shard.

    `summary` is filled in as the run goes on, so that who gave it knows of a failed run as well. `engine_for`
    gives the engine for a job, by default a new one.
    """
    started = time.monotonic()
    with lock_output(options.output), signals_raise():
        return _run(options, progress, summary or Summary(), started, engine_for or start_engine)


def _run(
    options: Options, progress: Progress | None, summary: Summary, started: float, engine_for: EngineFor
) -> Summary:
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
    """Have the first adapter that serves loaded; where rows name theirs, one that does not is only its rows'
    error.
    """
    *others, last = adapters.served
    for bundle in others:
        with contextlib.suppress(AdapterError):
            return bundle, engine.load(spec_of(bundle))
    return last, engine.load(spec_of(last))


def _route(
    job: Job, ledger: Ledger, engine: Supervisor, summary: Summary, progress: Progress | None, started: float
) -> None:
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
    lanes: dict[str, Lane] = (
        {bundle.digest: lane_of(bundle) for bundle in job.adapters.served} if job.adapters.column else {}
    )

    def requests() -> Iterator[Sequence[Any] | Mixed]:
        for batch in read_batches(job, ledger.done_rows):
            inputs.append(batch)
            wanted = job.retry.again(batch) if job.retry else batch
            texts, invalid = job.backlog.texts(wanted)
            values = (
                [INVALID_UTF8 if i in invalid else text for i, text in enumerate(texts)] if invalid else texts
            )
            yield (
                Mixed(
                    values, [lanes[bundle.digest] if bundle else None for bundle in job.adapters.rows(wanted)]
                )
                if lanes
                else values
            )

    facts = {"version": __version__, "base": job.facts["base"], **engine.facts}
    with known_answers(facts, ledger.answers, repeated, job.options.cache, job.options.cache_max) as known:
        window = WINDOW * engine.facts["max_num_seqs"]
        router = Router(engine, spec_of(first), first.contract, first.renderer, window, on_progress, known)
        summary.counts = router.counts
        shard = ShardWriter(job, ledger)
        try:
            for rows in router.route(requests()):
                shard.add(inputs.popleft(), rows)
        finally:
            shard.commit()  # also when interrupted: what is done is kept
            summary.engine |= {"restarts": engine.restarts, "usage": engine.usage._asdict()}
            summary.routing_seconds = time.monotonic() - begun


def _assemble(job: Job, ledger: Ledger) -> Proof:
    """Write the output from the shards and prove it against the input."""
    metadata = {
        "batch_route.version": __version__,
        "batch_route.adapter": ",".join(bundle.digest for bundle in job.adapters.served),
        "batch_route.contract": ",".join(
            dict.fromkeys(bundle.contract.fingerprint for bundle in job.adapters.served)
        ),
        "batch_route.engine": job.options.engine,
    }
    return assemble(
        ledger.shards,
        job.options.output,
        job.schema,
        metadata,
        job.options.id_column,
        (job.rows, job.id_digest),
    )
