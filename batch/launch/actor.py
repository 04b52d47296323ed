"""What an actor of a cluster does: units that come one or two at a time → one engine → parts and receipts.

It imports no Ray. A cluster tries for ever again what ended with its process, so attempts are counted in the
store, anew for each driver: a unit that ended several processes becomes error rows, and one that ends even
those stops the job.

    attempts/00007-0    made before the first attempt at a unit, and so on; it stays if the process ends
    attempts/lost-…     made where an engine does not start: its pool, and why
"""

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from batch.engine import AdapterSpec, Asked, Completion
from batch.engine.supervisor import Supervisor
from batch.engine.worker import Usage
from batch.errors import AdapterError, BatchRouteError, EngineError, ours
from batch.launch.worker import Task, Units, Worker
from batch.reporting.observer import Observer
from batch.storage.hashing import Int64s
from batch.storage.receipts import Receipts
from batch.storage.units import Unit

ATTEMPTS = 3  # at a unit, before its rows become errors: the engine has quarantined rows by itself before
ENDED = 70  # exit status of a process that leaves its units to the next

NOTHING_REPEATED: Int64s = np.empty(
    0, dtype=np.int64
)  # nobody has read the texts of units that are yet to come


class Here(NamedTuple):
    """What an actor has of its job."""

    task: Task
    receipts: Receipts
    engine: Supervisor
    pool: str = ""  # which pool of actors it is one of
    restarted: bool = False  # whether calls of an earlier process wait for this one


Begin = Callable[[], AbstractContextManager[Here]]
Told = dict[str, Any]  # what a call returns: `receipt`, or `message` and `exit_code` of what ends the job


class UnitActor:
    """One unit a call, two calls at a time, so that the engine never waits at the end of one.

    The constructor returns when the engine has proved itself. Where that does not start, it says so in the
    store and never returns: it would get units, or another actor its GPU. What every actor would meet again,
    such as another job on this node, each call returns instead: a cluster would try again.
    """

    def __init__(self, begin: Begin) -> None:
        self._end: BatchRouteError | None = None
        self._held = contextlib.ExitStack()
        self._units = Arriving()
        self._ready, self._once_more, self._leaving = threading.Event(), threading.Lock(), threading.Lock()
        try:
            self._here = self._held.enter_context(begin())
        except BatchRouteError as error:
            if error.exit_code != 2:
                raise
            self._end = error
            return
        threading.Thread(target=self._work, daemon=True).start()
        self._ready.wait()
        if isinstance(self._end, AdapterError | EngineError):
            self._stand_still(self._end)
        if self._end and self._end.exit_code != 2:
            self._held.close()
            raise self._end

    def __call__(self, batch: dict[str, Sequence[int]]) -> dict[str, list[str]]:
        return {"told": [json.dumps(self.score(int(unit))) for unit in batch["unit"]]}

    def score(self, index: int) -> Told:
        """Score a unit, unless it is done, and return what there is to tell of it."""
        if self._end:
            return self._ended()
        unit = self._here.receipts.plan[index]
        try:
            if self._here.receipts.find(index):
                return self._receipt(unit)
            tried = self._tries(index)
            with self._once_more if tried else contextlib.nullcontext():  # a suspect is tried alone
                return self._attempt(unit, self._mark(index, tried))
        except BatchRouteError as error:
            return _told(error)

    def close(self) -> None:
        """End the engine. What is begun stays undone."""
        self._units.stop()
        self._held.close()

    __del__ = close

    def _attempt(self, unit: Unit, number: int) -> Told:
        if number > ATTEMPTS:
            rows = f"rows {unit.start} to {unit.stop - 1}"
            raise EngineError(
                f"{rows} end the process that reads them; mend them in the input, then run again"
            )
        if number == ATTEMPTS:
            task, receipts, engine, *_ = self._here
            nobody = NoEngine(engine.facts)
            Worker(0, nobody, task, receipts, Observer(), _at_once).work(Units([unit]), NOTHING_REPEATED)
            return self._receipt(unit)
        self._units.put(unit)
        self._units.until(lambda: unit.index in self._here.receipts or self._end is not None)
        if unit.index in self._here.receipts:
            return self._receipt(unit)
        told = self._ended()
        self._here.receipts.store.remove(_marker(unit.index, number))  # not the unit's fault
        return told

    def _ended(self) -> Told:
        """What there is to tell of the actor's end; where its engine is lost, the process ends instead."""
        if self._ready.is_set() and isinstance(self._end, AdapterError | EngineError):
            self._leave()
        return _told(self._end or EngineError("the unit was not scored; run again to resume"))

    def _receipt(self, unit: Unit) -> Told:
        receipt = self._here.receipts.find(unit.index)
        return {"receipt": receipt.as_bytes().decode() if receipt else None}

    def _work(self) -> None:
        task, receipts, engine, *_ = self._here
        observer = Observer()

        def tell(call: Callable[[], None]) -> None:
            call()
            if observer.summary.devices:
                self._ready.set()

        try:
            Worker(0, engine, task, receipts, observer, tell).work(self._units, NOTHING_REPEATED)
        except BaseException as error:
            end = ours(error)
            self._end = end if isinstance(end, BatchRouteError) else EngineError(str(end))
        finally:
            self._units.done()
            self._ready.set()

    def _tries(self, index: int) -> int:
        """How many attempts at a unit have been made."""
        tried, store = 0, self._here.receipts.store
        while store.read(_marker(index, tried)) is not None:
            tried += 1
        return tried

    def _mark(self, index: int, number: int) -> int:
        """Count an attempt, the `number`-th or a later one; returns which it is."""
        while not self._here.receipts.store.create(_marker(index, number), b"{}"):
            number += 1
        return number

    def _stand_still(self, end: BatchRouteError) -> None:
        """Until the cluster ends the actor with its pool. First the engine: it has a GPU."""
        self._held.close()
        told = {**_told(end), "restarted": self._here.restarted}
        name = f"{lost_in(self._here.pool)}{secrets.token_hex(8)}"
        self._here.receipts.store.create(name, json.dumps(told).encode())
        threading.Event().wait()

    def _leave(self) -> None:
        """End the process: the cluster starts another, here or elsewhere. First the engine: it has a GPU."""
        with self._leaving:
            self._held.close()
            os._exit(ENDED)


class Arriving(Units):
    """Units that come one by one."""

    def __init__(self) -> None:
        super().__init__(())

    def put(self, unit: Unit) -> None:
        with self._changed:
            self._left.append(unit)
            self._changed.notify_all()

    def more(self) -> bool:
        """Whether there is one to take; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._left)
            return not self._stopped

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so that :meth:`done` tells of."""
        with self._changed:
            self._changed.wait_for(true)


class NoEngine:
    """Fails every request: the rows of a unit that nothing survives."""

    restarts, usage = 0, Usage()

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self._keys: list[int] = []

    def start(self) -> None:
        """It is as ready as it will be."""

    def load(self, adapter: AdapterSpec) -> dict[str, Any]:
        return {}

    def submit(self, adapter: str, work: Sequence[tuple[int, Asked]]) -> None:
        self._keys += [key for key, _ in work]

    def poll(self) -> list[Completion]:
        keys, self._keys = self._keys, []
        return [Completion(key, [], [], "error") for key in keys]


def _marker(index: int, number: int) -> str:
    return f"attempts/{index:05d}-{number}"


def lost_in(pool: str) -> str:
    """What the names of the markers begin with that the lost engines of a pool leave."""
    return f"attempts/lost-{pool}-"


def _at_once(call: Callable[[], None]) -> None:
    call()


def _told(error: BatchRouteError) -> Told:
    return {"message": str(error), "exit_code": error.exit_code}
