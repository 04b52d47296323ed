"""The main path: a Parquet backlog → scored Parquet.

check everything cheap → start the engine → read, score, commit shards → assemble, prove, manifest
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from batch import __version__
from batch.adapter.registry import Registry
from batch.engine import EngineSpec
from batch.engine.supervisor import Supervisor
from batch.errors import signals_raise
from batch.job import Job, Options, check, work_dir_of
from batch.reporting import drift
from batch.reporting.observer import Observer
from batch.reporting.summary import Summary
from batch.reporting.tally import Tally, shard_tally
from batch.scoring.adapters import engine_spec
from batch.scoring.known_answers import known_answers
from batch.scoring.scorer import Scorer, load_first
from batch.shard_writer import ShardWriter
from batch.source import Source, source_of
from batch.storage.ledger import Ledger, changes
from batch.storage.lock import lock_output
from batch.storage.manifest import Proof, write_manifest
from batch.storage.output import assemble

EngineFor = Callable[[Job], AbstractContextManager[Supervisor]]


def run(
    options: Options,
    observer: Observer | None = None,
    engine_for: EngineFor | None = None,
    registry: Registry | None = None,
) -> Summary:
    """Route a backlog. Raises a `BatchRouteError`; whatever stops it, a rerun resumes from the last shard.

    The `observer` hears of it all, of a failure too. `engine_for` gives the engine for a job, by default a
    new one. A `registry` that is given again has kept the bundles that it opened.
    """
    observer = observer or Observer()
    told = observer.around(options.input, options.output, options.adapter, options.max_error_rate)
    with told, lock_output(options.output), signals_raise():
        job = check(options, registry)
        digests = [bundle.digest for bundle in job.adapters.served]
        observer.checked(job.backlog, job.rows, digests, str(job.facts["base"]["ref"]))
        source = source_of(job)
        if manifest := source.finished():
            if work_dir_of(options).exists():  # killed after the manifest, before the work directory went
                Ledger.open(work_dir_of(options), job.facts, fresh=True).finish()
            return observer.summary.adopt(manifest)
        earlier = drift.baseline(options.output, job.facts)  # before its manifest is replaced
        with Ledger.open(work_dir_of(options), source.facts, options.fresh) as ledger:
            if other := ledger.work.other:
                observer.emit("other job set aside", level="warning", changes=changes(other, source.facts))
            observer.resumed(sum(map(shard_tally, ledger.shards), Tally()), source.asks, source.repeats)
            if ledger.done_rows < job.rows:
                with (engine_for or start_engine)(job) as engine:
                    score(job, source, engine, ledger, observer)
            proof = publish(job, ledger)
            compared = drift.compare(earlier, observer.summary.tally)
            told_of_run = observer.assembled(proof, compared)
            write_manifest(options.output, job.facts, proof, run=told_of_run, drift=compared)
            ledger.finish()
        return observer.summary


def start_engine(job: Job) -> Supervisor:
    """Start the engine's process and return at once; it loads while the parent goes on."""
    return Supervisor(wanted_engine(job), job.options.engine_timeout)


def wanted_engine(job: Job) -> EngineSpec:
    options = job.options
    return engine_spec(
        job.base,
        job.adapters.served,
        kind=options.engine,
        max_num_seqs=options.max_num_seqs,
        dtype=options.dtype,
        threads=options.threads,
        draft_tokens=options.draft_tokens,
    )


def score(job: Job, source: Source, engine: Supervisor, ledger: Ledger, observer: Observer) -> None:
    """Score the rows that no shard holds yet, and commit them shard by shard. Raises `EngineError`."""
    options = job.options
    engine.emit = observer.emit
    repeated = job.backlog.repeated_texts()  # while the engine starts
    canary = load_first(engine, job.adapters)
    facts = {"version": __version__, "base": job.facts["base"], **engine.facts}
    kept = (ledger.answers, repeated, options.cache, options.cache_max)
    with known_answers(facts, *kept, observer.emit) as known:
        slots = engine.facts["max_num_seqs"]
        scorer = Scorer(engine, job.adapters, job.backlog, job.schema, slots, observer.progressed, known)
        observer.engine_ready(engine.facts, canary, scorer.counts)
        shard = ShardWriter(job, ledger, observer)
        try:
            for scored in scorer.score(source.chunks(ledger.done_rows)):
                shard.add(scored)
        finally:
            shard.commit()  # also when interrupted: what is done is kept
            observer.engine_done(engine.restarts, engine.usage._asdict())


def publish(job: Job, ledger: Ledger) -> Proof:
    """Write the output from the shards and prove it against the input, which must still be what was read."""
    job.backlog.verify()
    bundles = job.adapters.served
    metadata = {
        "batch_route.version": __version__,
        "batch_route.adapter": ",".join(bundle.digest for bundle in bundles),
        "batch_route.contract": ",".join(dict.fromkeys(bundle.contract.fingerprint for bundle in bundles)),
        "batch_route.engine": job.options.engine,
    }
    expect = (job.rows, job.id_digest)
    return assemble(ledger.shards, job.options.output, job.schema, metadata, job.options.id_column, expect)
