"""`--ray`: a job's units scored by a cluster's actors. Every node sees the input, and the job's folder or the
output's object store.
"""

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.errors import AdapterError, BatchRouteError, EngineError, InputError, StorageError
from batch.job import Job, Options, check, work_dir_of
from batch.launch import ray
from batch.launch.actor import Here, Told, lost_in
from batch.launch.driver import Driver, DriverLost, Files, Order
from batch.reporting.observer import Observer
from batch.reporting.tally import Tally
from batch.run import plan_of, start_engines, task_of
from batch.scoring.router import Counts
from batch.source import Unscored
from batch.storage.folder import job_store, plan_store
from batch.storage.location import Location, absolute, is_local
from batch.storage.receipts import Receipts
from batch.storage.scratch import scratch
from batch.storage.store import Store
from batch.storage.workdir import ANSWERS, ATTEMPTS, SHARDS, changes, fingerprint
from batch.storage.written_plan import WrittenPlan

CPUS = 2  # an engine's actor: one reads, tokenises and writes, the other is the engine's own

DRIVERS = 3  # in a row that may die before they tell of a unit


def score_on_cluster(job: Job, receipts: Receipts, observer: Observer) -> None:
    """Have every unit without a receipt scored. No row passes through this process.

    Raises `InstallationError`, `InputError`, `EngineError`, `StorageError`; a rerun resumes.
    """
    plan = plan_of(job)
    plan.write(plan_store(job.options.output, work_dir_of(job.options)))
    for marker in receipts.store.names(ATTEMPTS):
        receipts.store.remove(marker)  # an earlier driver's: its actors ended with it, whatever they scored
    counts, spare, died = Counts(), 0, 0
    while left := len(receipts.missing):
        try:
            spare = max(spare, _one_pool(job, plan, receipts, counts, spare, observer))
        except DriverLost as error:
            died = died + 1 if len(receipts.missing) == left else 1
            if died == DRIVERS:
                raise
            observer.emit("driver lost", level="warning", why=str(error), units=len(receipts.missing))
    observer.engine_done(0, 0, {})


def _one_pool(
    job: Job, plan: WrittenPlan, receipts: Receipts, counts: Counts, spare: int, observer: Observer
) -> int:
    """Until every unit is scored, or those that are left wait for nodes or engines that are lost. Returns how
    many engines were lost; `spare` is how many of the actors may meet such a place.
    """
    options, pool, lost = job.options, secrets.token_hex(4), dict[str, Told]()
    order = Order(
        address=options.ray or "auto",
        devices=options.devices,
        gpus=options.tensor_parallel,
        cpus=options.threads or CPUS,
        units=receipts.missing,
        spare=spare,
        files=_files(job.adapters.default),
        begin=functools.partial(_begin, _for_nodes(job), plan.facts["adapter"], pool),
    )
    with contextlib.closing(Driver(order)) as driver:
        room, size = driver.ready
        observer.emit("cluster ready", actors=size.actors, gpus=size.gpus, cpus=size.cpus)
        since = time.monotonic()  # the first receipt comes with its rows: engines' loading counts as scoring
        for told in driver.told():
            if isinstance(told, int):
                _note_lost(receipts.store, pool, lost, observer)
                gone, left = max(0, room - told), len(receipts.missing)
                waited_for = gone + sum(each["restarted"] for each in lost.values())
                if len(lost) + gone < size.actors and left > ray.IN_FLIGHT * waited_for:
                    continue
                if gone:
                    observer.emit("nodes lost", level="warning", engines=gone, units=left)
                if left and len(lost) == room:
                    # a rerun may go further than those that served, but not than those that never could
                    raise _raised(max(lost.values(), key=lambda each: int(each["exit_code"])))
                return len(lost)
            if not told.get("receipt"):
                raise _raised(told)
            receipt = receipts.take(told["receipt"])
            if not observer.summary.devices:
                facts = dict(receipt.engine)
                observer.engine_ready(0, facts, facts.pop("canary", {}), counts, since)
            counts.rows += receipt.rows
            observer.committed(Tally.from_json(receipt.tally))
            observer.progressed()
    if missing := receipts.missing:
        raise EngineError(f"{len(missing)} units came back without a receipt; run again to resume")
    _note_lost(receipts.store, pool, lost, observer)
    return len(lost)


def _note_lost(store: Store, pool: str, lost: dict[str, Told], observer: Observer) -> None:
    """Tell of the pool's engines that did not start, and are not among the `lost` yet."""
    for name in store.names(ATTEMPTS):
        if name.startswith(lost_in(pool)) and name not in lost and (told := store.read(name)):
            lost[name] = json.loads(told)
            observer.emit("engine lost", level="warning", why=lost[name]["message"])


def _begin(
    options: Options, digest: str, pool: str, size: ray.Size, fetch: Callable[[], Files]
) -> contextlib.AbstractContextManager[Here]:
    """What an actor of a pool of that size begins with."""
    threads = options.threads or (None if size.gpus else size.cpus)
    options = dataclasses.replace(options, threads=threads)
    return engine_here(options, digest, fetch, pool, ray.restarted)


@contextlib.contextmanager
def engine_here(
    options: Options,
    digest: str,
    fetch: Callable[[], Files],
    pool: str = "",
    restarted: Callable[[], bool] = lambda: False,
) -> Iterator[Here]:
    """In an actor: its part of the job, checked against the plan that is written down, and its engine."""
    path = work_dir_of(options)
    written = WrittenPlan.read(plan_store(options.output, path))
    if written is None:
        what = f"a node of the cluster does not see the plan of {Location.of(options.output).name}"
        raise InputError(f"{what}; put OUTPUT where all nodes see it")
    options = dataclasses.replace(options, adapter=_adapter_here(options.adapter, digest, fetch))
    job = check(options, written=written)
    if differing := changes(written.facts, plan_of(job).facts):
        raise InputError(
            f"a node of the cluster has another job ({differing}); install the same on all nodes"
        )
    with scratch() as own, start_engines(job) as engines:
        shards, answers = own / SHARDS, own / ANSWERS
        shards.mkdir()
        task = task_of(job, written, Unscored(job), shards, answers)
        name = fingerprint(written.facts)
        store = job_store(options.output, path if is_local(options.output) else own, name)
        yield Here(task, Receipts(store, written.units, name), engines[0], pool, restarted())


def _for_nodes(job: Job) -> Options:
    """The options as an actor has them: wherever it runs, paths lead to the same places."""
    options = job.options

    def from_root(path: Any) -> Any:
        return type(path)(absolute(os.fspath(path))) if path is not None and is_local(path) else path

    return dataclasses.replace(
        options,
        input=from_root(options.input),
        output=from_root(options.output),
        work_dir=from_root(options.work_dir),
        cache=from_root(options.cache),
        base_model=from_root(_original_base(job)),
        devices=None,
        ray=None,
        fresh=False,
    )


def _original_base(job: Job) -> str | None:
    """What a node serves or expands, as `--base-model` takes it; None where the adapter tells it itself."""
    bundle, named = job.adapters.default, job.options.base_model
    if bundle.expansion is None:
        return str(job.base)
    return str(bundle.original_base(named)) if named else None


def _files(bundle: Bundle) -> dict[str, Path]:
    return {file.name: file for file in sorted(bundle.path.iterdir()) if file.is_file()}


def _adapter_here(named: str, digest: str, fetch: Callable[[], Files]) -> str:
    """The adapter on this node by its digest, whatever an alias means by now; fetched if it is not there."""
    registry = Registry()
    for reference in (digest, named):
        with contextlib.suppress(AdapterError):
            if registry.open(reference).digest == digest:
                return reference
    folder = registry.staging()
    for name, data in fetch().items():
        (folder / name).write_bytes(data)
    bundle = registry.add(folder)
    if bundle.digest != digest:
        raise AdapterError(f"the adapter came as {bundle.digest[:12]} for {digest[:12]}; run again")
    return digest


def _raised(told: dict[str, Any]) -> BatchRouteError:
    kinds: dict[int, type[BatchRouteError]] = {2: InputError, 75: StorageError}
    return kinds.get(told.get("exit_code", 75), EngineError)(told.get("message") or json.dumps(told))
