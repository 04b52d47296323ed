"""The main path: a Parquet backlog → scored Parquet.

check everything cheap → plan units → engines score them, a part and a receipt each → prove, publish, manifest
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from batch import __version__
from batch.adapter.registry import Registry
from batch.engine import EngineSpec
from batch.engine.supervisor import Supervisor
from batch.errors import deadline, signals_raise
from batch.job import Job, Options, check, work_dir_of
from batch.launch import local
from batch.launch.devices import placements
from batch.launch.part_writer import kept_tally
from batch.launch.worker import Task
from batch.reporting import drift
from batch.reporting.observer import Observer
from batch.reporting.summary import Summary
from batch.scoring.adapters import engine_spec
from batch.source import Source, source_of
from batch.storage import folder
from batch.storage.location import is_local
from batch.storage.lock import lock_output
from batch.storage.manifest import Proof, is_folder, part_names, write_manifest
from batch.storage.output import assemble
from batch.storage.receipts import Receipts
from batch.storage.store import LocalStore, Store, store_at
from batch.storage.units import Plan
from batch.storage.workdir import WorkDir, changes, fingerprint

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
    told = observer.around(options.input, options.output, options.adapter, options.max_error_rate)
    with told, lock_output(options.output), signals_raise(), deadline(options.deadline):
        job = check(options, registry)
        observer.checked(job.backlog, job.rows, job.adapters.served, str(job.facts["base"]["ref"]))
        source = source_of(job)
        name = fingerprint(source.facts)
        if manifest := source.finished():
            folder.seal(options.output, part_names(manifest), name)  # killed after the manifest, before this
            WorkDir.discard(work_dir_of(options))
            return observer.summary.adopt(manifest)
        earlier = drift.earlier_run(options.output, job.facts)  # before its manifest is replaced
        with WorkDir.open(work_dir_of(options), source.facts, options.fresh) as work:
            if work.other:
                changed = changes(work.other, source.facts)
                observer.emit("other job set aside", level="warning", changes=changed)
            receipts = Receipts.open(store_of(options, work, name), Plan.of(job.rows))
            observer.resumed(kept_tally(receipts, work.shards), source.asks, source.repeats)
            if not receipts.complete:
                with (engines_for or start_engines)(job) as started:
                    local.score(task_of(job, source, work), receipts, started, observer)
            proof = publish(job, receipts, name)
            compared = drift.compare(earlier, observer.summary.tally)
            told_of_run = observer.assembled(proof, compared)
            replaces = job.replaces if is_folder(options.output) else None  # a file's has gone already
            write_manifest(options.output, job.facts, proof, replaces, run=told_of_run, drift=compared)
            folder.seal(options.output, [part.name for part in proof.parts or ()], name)
            work.finish()
        return observer.summary


def store_of(options: Options, work: WorkDir, name: str) -> Store:
    """Where the parts and receipts of the job with the fingerprint `name` lie: in the output's object store,
    or else with the rest of the unfinished work.
    """
    if is_local(options.output):
        return LocalStore(work.path)
    store = store_at(folder.parts_folder(options.output, name), work.path)
    if options.fresh:
        for receipt in store.names("receipts"):
            store.remove(receipt)  # parts may still be the output's
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
        for own in placements(options.devices, options.threads)
    ]


def task_of(job: Job, source: Source, work: WorkDir) -> Task:
    options = job.options
    return Task(
        adapters=job.adapters,
        backlog=job.backlog,
        source=source,
        schema=job.schema.with_metadata({**(job.schema.metadata or {}), **metadata(job)}),
        id_column=options.id_column,
        prefix=options.prefix,
        facts={"version": __version__, "base": job.facts["base"], "reasons": options.reasons},
        scratch=work.path,
        cache=options.cache,
        cache_max=options.cache_max,
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


def publish(job: Job, receipts: Receipts, name: str) -> Proof:
    """Prove that the parts are the input, which must still be what was read, and make them the output. `name`
    tells this job's parts from others'.
    """
    job.backlog.verify()
    output, id_column, expect = job.options.output, job.options.id_column, (job.rows, job.id_digest)
    if is_folder(output):
        return folder.publish(receipts, output, name, id_column, expect)
    parts = [receipts.store.location(receipt.part) for receipt in receipts]
    size = sum(receipt.size for receipt in receipts)
    return assemble(parts, output, job.schema, metadata(job), id_column, expect, job.replaces, size)
