"""`--shard I/N`: units I, I + N, … of a job that others score the rest of, at the same time or another.

Each leaves parts and receipts in the job's folder, which they share; `batch.commit` makes them the output.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from batch.adapter.registry import Registry
from batch.errors import InputError, deadline, signals_raise
from batch.job import Job, Options, check, work_dir_of
from batch.launch import local
from batch.launch.part_writer import kept_tally
from batch.reporting.observer import Observer
from batch.run import plan_of, start_engines, task_of
from batch.source import Unscored
from batch.storage.location import refused_or_failed
from batch.storage.lock import Lock, lock_output
from batch.storage.places import shared_only
from batch.storage.receipts import RECEIPT, Receipts
from batch.storage.store import LocalStore
from batch.storage.workdir import WorkDir, fingerprint, job_in
from batch.storage.written_plan import WrittenPlan

PLANNING = 4 * 3600.0  # seconds for another shard to read the whole of INPUT once, before it writes the plan


class Left(NamedTuple):
    """What there is to do of the whole job after a shard."""

    units: int  # without a receipt
    of: int
    done: bool = False  # the output is complete already


def score_shard(options: Options, observer: Observer | None = None, registry: Registry | None = None) -> Left:
    """Score the units of `options.shard`. Raises a `BatchRouteError`; a rerun resumes it."""
    index, count = options.shard or (0, 1)
    observer = observer or Observer()
    told = observer.around(options.input, options.output, options.adapter, max_error_rate=1.0)
    with (
        told,
        _refused(options),
        lock_output(options.output, shared=True),
        signals_raise(),
        deadline(options.deadline),
        _joined(options, registry) as joined,
    ):
        job, work = joined
        if work is None:
            return Left(0, 0, done=True)
        plan = plan_of(job)
        observer.checked(job.backlog, plan)
        wanted = range(index, len(plan.units), count)
        mine = [plan.units[unit] for unit in wanted]
        receipts = Receipts.open(LocalStore(work.path), plan.units, fingerprint(job.facts), wanted)
        tally = kept_tally(receipts, mine, work.shards)
        observer.resumed(tally, sum(unit.rows for unit in mine), False, receipts.engine)
        if len(receipts) < len(mine):
            # answers on this machine's disk: a network's is no place for SQLite
            own = tempfile.TemporaryDirectory(prefix="batch-route-")
            with own as answers, start_engines(job) as started:
                task = task_of(job, plan, Unscored(job), work.shards, Path(answers))
                local.score(task, receipts, mine, started, observer)
        job.backlog.verify()
        found = len([name for name in receipts.store.names("receipts") if RECEIPT.fullmatch(name)])
        return Left(len(plan.units) - found, len(plan.units))


@contextlib.contextmanager
def _refused(options: Options) -> Iterator[None]:
    """Refuse what does not go with a shard: `InputError`."""
    shared_only(options.output)
    whole = {
        "--fresh": options.fresh,
        "--retry-errors": options.retry_errors,
        "--ray": options.ray is not None,
    }
    for option, given in whole.items():
        if given:
            raise InputError(f"{option} is for a whole run and does not go with --shard; leave it out")
    yield


@contextlib.contextmanager
def _joined(options: Options, registry: Registry | None) -> Iterator[tuple[Job, WorkDir | None]]:
    """The checked job and its folder, shared; None where its output is complete. The first shard checks the
    whole input and writes the plan down; those that come meanwhile wait for it, and no other job takes the
    folder as long as one lives.
    """
    path = work_dir_of(options)
    store = LocalStore(path)
    if written := WrittenPlan.read(store):
        job = check(options, registry, written)
        with WorkDir.join(path) as work:
            if job_in(path) == plan_of(job).facts:
                yield job, work
                return
    with _planning(path):
        job = check(options, registry, WrittenPlan.read(store))
        if Unscored(job).finished():
            yield job, None
            return
        plan = plan_of(job)
        if job_in(path) != plan.facts:
            WorkDir.open(path, plan.facts).close()
        work = WorkDir.join(path)
        plan.write(store)
    with work:
        yield job, work


def _planning(path: Path) -> Lock:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Lock.take(path.with_name(f"{path.name}.plan.lock"), str(path), PLANNING)
    except OSError as error:
        raise refused_or_failed(f"cannot work in {path}", error, "choose another --work-dir") from error
