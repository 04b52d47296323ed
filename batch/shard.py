"""`--shard I/N`: units I, I + N, … of a job that others score the rest of, at the same time or another.

Each leaves parts and receipts where all of them find those: in the job's folder on a disk that they share, or
in the output's object store. `batch.commit` makes them the output.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from batch.adapter.registry import Registry
from batch.errors import deadline, signals_raise
from batch.job import Job, Options, check, kept_folders, refuse_kept, refuse_together, work_dir_of
from batch.launch import local
from batch.launch.part_writer import kept_tally
from batch.reporting.observer import Observer
from batch.run import plan_of, start_engines, task_of
from batch.source import Unscored
from batch.storage.folder import job_store, plan_store
from batch.storage.location import is_local
from batch.storage.lock import lock_output
from batch.storage.receipts import RECEIPT, Receipts
from batch.storage.scratch import scratch
from batch.storage.workdir import RECEIPTS, WorkDir, fingerprint, job_in
from batch.storage.written_plan import WrittenPlan


class Left(NamedTuple):
    """What there is to do of the whole job after a shard."""

    units: int  # without a receipt
    of: int
    done: bool = False  # the output is complete already


def score_shard(options: Options, observer: Observer | None = None, registry: Registry | None = None) -> Left:
    """Score the units of `options.shard`. Raises a `BatchRouteError`; a rerun resumes it."""
    index, count = options.shard or (0, 1)
    observer = observer or Observer()
    kept = kept_folders(options, registry)
    told = observer.around(options.input, options.output, options.adapter, 1.0, kept)
    with (
        told,
        lock_output(options.output, shared=True),
        signals_raise(),
        deadline(options.deadline),
        _joined(options, registry) as joined,
    ):
        job, work = joined
        if work is None:
            return Left(0, 0, done=True)
        plan = plan_of(job)
        observer.checked(job.backlog, plan, job.base, job.adapters.notes)
        wanted = range(index, len(plan.units), count)
        mine = [plan.units[unit] for unit in wanted]
        name = fingerprint(job.facts)
        receipts = Receipts.open(job_store(options.output, work.path, name), plan.units, name, wanted)
        tally = kept_tally(receipts, mine, work.shards)
        observer.resumed(tally, sum(unit.rows for unit in mine), False, receipts.engine)
        if len(receipts) < len(mine):
            # answers on this machine's disk: a network's is no place for SQLite
            with scratch() as answers, start_engines(job) as started:
                task = task_of(job, plan, Unscored(job), work.shards, answers)
                local.score(task, receipts, mine, started, observer)
        job.backlog.verify()
        found = len([name for name in receipts.store.names(RECEIPTS) if RECEIPT.fullmatch(name)])
        if not is_local(options.output):
            work.leave()  # whoever commits may do so on another machine
        return Left(len(plan.units) - found, len(plan.units))


@contextlib.contextmanager
def _joined(options: Options, registry: Registry | None) -> Iterator[tuple[Job, WorkDir | None]]:
    """The checked job and its folder, shared; None where its output is complete. The first shard checks the
    whole input and writes the plan down. Those that come meanwhile and see its folder wait for it, and no
    other job takes that as long as one lives; in a store the plan is of the job whose shard began last.
    """
    refuse_together(options)
    refuse_kept(options, registry)  # before there is a lock or a folder
    path = work_dir_of(options)
    plans = plan_store(options.output, path)
    written = WrittenPlan.read(plans)
    job = check(options, registry, written) if written else None
    work = _folder_of(path, job) if written and job and plan_of(job).facts == written.facts else None
    if job is None or work is None:
        with WorkDir.planning(path):
            job = job or check(options, registry, WrittenPlan.read(plans))
            plan = plan_of(job)
            finished = Unscored(job).finished()
            if not finished:
                if job_in(path) != plan.facts:
                    WorkDir.open(path, plan.facts).close()
                work = WorkDir.join(path)
                plan.write(plans)
        if finished and (left := _folder_of(path, job)):
            left.leave(finished=True)
    with work or contextlib.nullcontext():
        yield job, work


def _folder_of(path: Path, job: Job) -> WorkDir | None:
    """The folder of a job, shared, if it is this job's that this machine has."""
    if not path.exists():
        return None
    work = WorkDir.join(path)
    if job_in(path) == plan_of(job).facts:
        return work
    work.close()
    return None
