"""This machine's engines on one queue of units."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue

from batch.engine.supervisor import Supervisor
from batch.errors import AdapterError, EngineError
from batch.launch.worker import Task, Units, Worker
from batch.reporting.observer import Observer
from batch.storage.hashing import Int64s
from batch.storage.receipts import Receipts
from batch.storage.units import Unit

STOP_SECONDS = 8.0  # for the workers to keep what they have when the run is stopped

Call = Callable[[], None]


def score(
    task: Task,
    receipts: Receipts,
    wanted: Iterable[Unit],
    engines: Sequence[Supervisor],
    observer: Observer,
) -> None:
    """Score every unit of those `wanted` that has no receipt.

    An engine that does not recover, or does not start, leaves its units to the others; only where none is
    left, its `EngineError` or `AdapterError` is raised. Whatever else a worker meets ends them all.
    """
    wanted = list(wanted)
    left = [unit for unit in wanted if unit.index not in receipts]
    units = Units(left)
    repeated = task.backlog.repeated_texts(wanted)  # while the engines start
    for engine in engines:
        engine.emit = observer.emit
    if len(engines) == 1:
        Worker(0, engines[0], task, receipts, observer, lambda call: call()).work(units, repeated)
    else:
        failed = _side_by_side(task, receipts, engines, observer, units, repeated)
        if any(unit.index not in receipts for unit in left):
            # a rerun may go further than those that served, but not than those that never could
            raise next((error for error in failed if isinstance(error, EngineError)), failed[-1])


def _side_by_side(
    task: Task,
    receipts: Receipts,
    engines: Sequence[Supervisor],
    observer: Observer,
    units: Units,
    repeated: Int64s,
) -> list[EngineError | AdapterError]:
    """A thread an engine, which waits for it most of the time. The observer is called from this one alone.
    Returns how engines ended that did not get well, or that refused: one GPU of several may be the only one
    that does.
    """
    calls: SimpleQueue[Call | _Ended] = SimpleQueue()
    workers = [
        Worker(device, engine, task, receipts, observer, calls.put) for device, engine in enumerate(engines)
    ]
    threads = [
        threading.Thread(target=_work, args=(worker, units, repeated, calls), daemon=True)
        for worker in workers
    ]
    ended, failed = 0, list[EngineError | AdapterError]()
    try:
        for thread in threads:
            thread.start()
        while ended < len(workers):
            call = calls.get()
            if not isinstance(call, _Ended):
                call()
                continue
            ended += 1
            if isinstance(call.error, EngineError | AdapterError):
                failed.append(call.error)
                observer.engine_lost(call.device, str(call.error))
            elif call.error:
                raise call.error
    except BaseException:
        units.stop()
        for engine in engines:
            engine.abandon()
        until = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        raise
    return failed


class _Ended:
    def __init__(self, device: int, error: BaseException | None) -> None:
        self.device, self.error = device, error


def _work(worker: Worker, units: Units, repeated: Int64s, calls: "SimpleQueue[Call | _Ended]") -> None:
    try:
        worker.work(units, repeated)
        calls.put(_Ended(worker.device, None))
    except BaseException as error:
        worker.give_back(units)
        calls.put(_Ended(worker.device, error))
