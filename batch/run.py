"""The main path: a Parquet backlog → scored Parquet.

check everything cheap → plan units → engines score them, a part and a receipt each → prove, publish, manifest
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from batch import __version__
from batch.adapter.registry import Registry
from batch.contract.json_text import as_json
from batch.engine import EngineSpec
from batch.engine.supervisor import Supervisor
from batch.errors import deadline, signals_raise
from batch.job import Job, Options, check, kept_folders, work_dir_of
from batch.launch import local
from batch.launch.devices import placements
from batch.launch.part_writer import kept_tally
from batch.launch.worker import Task
from batch.publish import publish
from batch.reporting.observer import Observer
from batch.reporting.summary import Summary
from batch.scoring.adapters import engine_spec
from batch.source import Source, source_of
from batch.storage import folder
from batch.storage.location import absolute, is_local
from batch.storage.lock import lock_output
from batch.storage.manifest import part_names
from batch.storage.receipts import Receipts
from batch.storage.store import Store
from batch.storage.units import Plan
from batch.storage.workdir import ANSWERS, ATTEMPTS, RECEIPTS, WorkDir, changes, fingerprint
from batch.storage.written_plan import WrittenPlan

EnginesFor = Callable[[Job], AbstractContextManager[Sequence[Supervisor]]]


def run(
    options: Options,
    observer: Observer | None = None,
    engines_for: EnginesFor | None = None,
    registry: Registry | None = None,
) -> Summary:
    """Route a backlog. Raises a `BatchRouteError`; whatever stops it, a rerun resumes it.

    The `observer` hears of it all, of a failure too. `engines_for` gives the engines for a job, by default
    new ones. A `registry` that is given again has kept the bundles that it opened.
    """
    observer = observer or Observer()
    kept = kept_folders(options, registry)
    told = observer.around(options.input, options.output, options.adapter, options.max_error_rate, kept)
    with told, lock_output(options.output), signals_raise(), deadline(options.deadline):
        job = check(options, registry)
        plan = plan_of(job)
        observer.checked(job.backlog, plan, job.base, job.adapters.notes)
        source = source_of(job)
        name = fingerprint(source.facts)
        if manifest := source.finished():
            # killed after the manifest, before this
            folder.seal(options.output, part_names(manifest), name, job.replaces)
            WorkDir.discard(work_dir_of(options))
            return observer.summary.adopt(manifest)
        with WorkDir.open(work_dir_of(options), source.facts, options.fresh) as work:
            if work.other:
                changed = changes(work.other, source.facts)
                observer.emit("other job set aside", level="warning", changes=changed)
            receipts = Receipts.open(store_of(options, work, name), plan.units, name)
            tally = kept_tally(receipts, plan.units, work.shards)
            observer.resumed(tally, source.asks, source.repeats, receipts.engine)
            if not receipts.complete and options.ray is not None:
                from batch.cluster import score_on_cluster  # it stands on this module

                score_on_cluster(job, receipts, observer)
            elif not receipts.complete:
                task = task_of(job, plan, source, work.shards, work.path / ANSWERS)
                with (engines_for or start_engines)(job) as started:
                    local.score(task, receipts, plan.units, started, observer)
            observer.phase("writing the output")
            job.backlog.verify()
            publish(options.output, plan, receipts, observer, job.replaces)
            work.finish()
        return observer.summary


def store_of(options: Options, work: WorkDir, name: str) -> Store:
    """Where the parts and receipts of the job with the fingerprint `name` lie; none with `--fresh`."""
    store = folder.job_store(options.output, work.path, name)
    if options.fresh:
        for done in (*store.names(RECEIPTS), *store.names(ATTEMPTS)):
            store.remove(done)  # parts may still be the output's
    return store


@contextlib.contextmanager
def start_engines(job: Job) -> Iterator[Sequence[Supervisor]]:
    """Start the engines' processes and go on at once; they load meanwhile."""
    with contextlib.ExitStack() as stack:
        patience = job.options.engine_timeout
        yield [stack.enter_context(Supervisor(spec, patience)) for spec in wanted_engines(job)]


def wanted_engines(job: Job) -> list[EngineSpec]:
    options = job.options
    return [
        engine_spec(
            job.base,
            job.adapters.served,
            kind=options.engine,
            max_num_seqs=options.max_num_seqs,
            dtype=options.dtype,
            draft_tokens=options.draft_tokens,
            **own,
        )
        for own in placements(options.devices, options.threads, options.tensor_parallel)
    ]


def task_of(job: Job, plan: WrittenPlan, source: Source, shards: Path, answers: Path) -> Task:
    options = job.options
    return Task(
        adapters=job.adapters,
        backlog=job.backlog,
        source=source,
        schema=plan.schema,
        id_column=options.id_column,
        prefix=options.prefix,
        facts={name: job.facts[name] for name in ("version", "scoring", "base", "reasons")},
        shards=shards,
        answers=answers,
        cache=options.cache,
        cache_max=options.cache_max,
    )


def plan_of(job: Job) -> WrittenPlan:
    source, units = job.options.input, Plan.of(job.rows)
    return WrittenPlan(
        facts=as_json(job.facts),
        source=absolute(source) if is_local(source) and "://" not in source else source,
        rows=job.rows,
        ids=job.id_digest,
        unit_rows=units.unit_rows,
        schema=job.schema.with_metadata({**(job.schema.metadata or {}), **metadata(job)}),
        thresholds={bundle.digest: bundle.calibration.threshold for bundle in job.adapters.served},
    )


def metadata(job: Job) -> dict[str, str]:
    """What the output's Parquet files say of themselves: nothing that differs from run to run."""
    bundles = job.adapters.served
    return {
        "batch_route.version": __version__,
        "batch_route.adapter": ",".join(bundle.digest for bundle in bundles),
        "batch_route.contract": ",".join(dict.fromkeys(bundle.contract.fingerprint for bundle in bundles)),
        "batch_route.engine": job.options.engine,
    }
