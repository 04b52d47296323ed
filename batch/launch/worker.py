"""Who scores units: one engine, fed without a pause, that leaves a part and a receipt for each."""

import contextlib
import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from batch.background import in_background
from batch.engine.worker import Usage
from batch.errors import StorageError
from batch.launch.part_writer import PartWriter
from batch.reporting.observer import Observer
from batch.reporting.tally import Tally
from batch.scoring.adapters import Adapters
from batch.scoring.known_answers import known_answers
from batch.scoring.router import EngineClient
from batch.scoring.scorer import Chunk, Scorer, load_first
from batch.storage.backlog import Backlog
from batch.storage.hashing import Int64s
from batch.storage.receipts import Receipts
from batch.storage.units import Cursor, Unit

WRITE_SECONDS = 5.0  # for a part that is being written to get there when the run is stopped
LOOK_SECONDS = 0.5  # between two looks whether it is


class Rows(Protocol):
    """The rows of a job, in order."""

    def batches(self, start: int, size: int) -> Iterator[pa.RecordBatch]:
        """The rows from `start` on, at most `size` at a time. Raises `InputError`, `StorageError`."""

    def chunk(self, batch: pa.RecordBatch) -> Chunk:
        """The part of such a batch that has to be scored."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker knows of a job."""

    adapters: Adapters
    backlog: Backlog
    source: Rows
    schema: pa.Schema  # of the output, with its metadata
    id_column: str
    prefix: str
    facts: dict[str, Any]  # what answers depend on beside text, bundle and engine
    shards: Path  # folder for what is done of a unit
    answers: Path  # folder on this machine for answers to texts that the input repeats
    cache: Path | None
    cache_max: int


class ScoringEngine(EngineClient, Protocol):
    """What a worker needs of an engine: `Supervisor` is one."""

    @property
    def facts(self) -> dict[str, Any]: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def restarts(self) -> int: ...
    def start(self) -> None: ...


class Units:
    """The units that are left, for several workers to take."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._left = deque(units)
        self._taken = 0
        self._stopped = False
        self._changed = threading.Condition()

    def take(self) -> Unit | None:
        """The next one, if any is left now."""
        with self._changed:
            if self._stopped or not self._left:
                return None
            self._taken += 1
            return self._left.popleft()

    def done(self) -> None:
        """One that was taken is scored."""
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    def give_back(self, units: Iterable[Unit]) -> None:
        """What was taken and will not be scored by who took it."""
        with self._changed:
            for unit in units:
                self._taken -= 1
                self._left.appendleft(unit)
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        return self._stopped

    def more(self) -> bool:
        """Whether there is one to take; waits while another worker may yet give one back."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._left or not self._taken)
            return bool(self._left) and not self._stopped


class Worker:
    """One device's engine. What it has to say goes through `tell`, which may have it said elsewhere."""

    def __init__(
        self,
        device: int,
        engine: ScoringEngine,
        task: Task,
        receipts: Receipts,
        observer: Observer,
        tell: Callable[[Callable[[], None]], None],
    ) -> None:
        self.device, self.engine = device, engine
        self._task, self._receipts = task, receipts
        self._observer, self._tell = observer, tell
        self._stopped = False
        # of the units that were taken, in order: the one that is being written, and the others
        self._writing: tuple[PartWriter, Future[Tally]] | None = None
        self._parts: deque[PartWriter] = deque()
        self._given_back: set[int] = set()
        self._counting = threading.Lock()  # a unit that was taken is done or given back, never both

    def give_back(self, units: Units) -> None:
        """Leave to others the units that were taken and are not done. One may be written even then."""
        with self._counting:
            undone = [part.unit for part in self._undone()]
            self._given_back.update(unit.index for unit in undone)
            units.give_back(undone)

    def _undone(self) -> list[PartWriter]:
        parts = [*([self._writing[0]] if self._writing else []), *self._parts]
        return [part for part in parts if part.unit.index not in self._receipts]

    def work(self, units: Units, repeated: Int64s) -> None:
        """Score units until none is left. Two overlap, so that the engine never waits at the end of one, and
        a part is written, which may be far away, while the next rows are scored.

        What an unfinished unit has is kept when anything ends this. Raises `EngineError`, `StorageError`,
        `InputError`, `AdapterError`.
        """
        task, engine, observer = self._task, self.engine, self._observer
        self._tell(partial(observer.phase, "loading the model"))
        engine.start()
        self._tell(partial(observer.phase, "compiling the grammar"))
        canary = load_first(engine, task.adapters)
        facts = {**task.facts, **engine.facts}
        kept = (task.answers, repeated, task.cache, task.cache_max)
        with known_answers(facts, *kept, self._emit) as known:
            progressed = partial(self._tell, observer.progressed)
            slots = engine.facts["max_num_seqs"]
            scorer = Scorer(engine, task.adapters, slots, lambda _: progressed(), known)
            self._tell(partial(observer.engine_ready, self.device, engine.facts, canary, scorer.counts))
            self._proved = {**engine.facts, "canary": canary}
            try:
                while units.more():
                    chunks = self._chunks(units, scorer.feed_rows)
                    for scored in scorer.score(chunks, task.backlog.text_column, task.schema):
                        # not always the first: of some units all rows had been kept
                        next(part for part in self._parts if not part.full).add(scored)
                        self._finish(units)
                    self._finish(units)
                self._written(units)
            finally:
                self._keep()
                usage = engine.usage._asdict()
                self._tell(partial(observer.engine_done, self.device, engine.restarts, usage))

    def _chunks(self, units: Units, size: int) -> Iterator[Chunk]:
        """The rows of unit after unit, at most `size` at a time, as the engine makes room for them."""
        task = self._task
        cursor = Cursor(partial(task.source.batches, size=size))
        answers = task.adapters.answers
        while unit := units.take():
            part = PartWriter(unit, task.shards, task.schema, answers, task.prefix, self._committed)
            self._parts.append(part)
            yield from map(task.source.chunk, cursor.read(unit.start + part.rows, unit.stop))

    def _emit(self, event: str, *, level: str = "info", **facts: Any) -> None:
        self._tell(partial(self._observer.emit, event, level=level, **facts))

    def _committed(self, tally: Tally) -> None:
        self._tell(partial(self._observer.committed, tally))

    def _finish(self, units: Units) -> None:
        """Have the parts and receipts of the units written whose rows are all there, one at a time: each
        holds a unit's rows.
        """
        while self._parts and self._parts[0].full:
            self._written(units)
            if self._writing:
                return
            part = self._parts.popleft()
            written = in_background(partial(self._write, part, units))
            # who waits for another unit hears of it
            written.add_done_callback(lambda each: units.stop() if each.exception() else None)
            self._writing = part, written
        if self._writing and self._writing[1].done():
            self._told()

    def _write(self, part: PartWriter, units: Units) -> Tally:
        """In a thread of its own. Returns what there is to tell of the part."""
        receipts = self._receipts
        receipt, tally = part.finish(receipts.store, self._task.id_column, self._proved, receipts.job)
        if not self._stopped:
            receipts.add(receipt)
        if not self._stopped:  # else another run may have begun, on what this one has kept
            part.forget()
        with self._counting:
            if part.unit.index in receipts and part.unit.index not in self._given_back:
                units.done()
        return tally

    def _written(self, units: Units) -> None:
        """Wait for the part that is being written, if one is, as long as the run goes on. Raises
        `StorageError`.
        """
        while self._writing:
            stopped = units.stopped  # asked first: an error is there before it has stopped the others
            if wait([self._writing[1]], 0 if stopped else LOOK_SECONDS).done:
                self._told()
            elif stopped:
                return

    def _told(self, seconds: float | None = None) -> None:
        """Tell of that part once it is there. Raises `StorageError` where it could not be written,
        `TimeoutError` after `seconds`.
        """
        if self._writing:
            tally = self._writing[1].result(seconds)
            self._writing = None
            self._committed(tally)

    def _keep(self) -> None:
        """Keep what there is of each unit that is not done, whatever becomes of the others."""
        with contextlib.suppress(Exception):  # what stopped the run is told
            self._told(WRITE_SECONDS)
        self._stopped = True
        for part in self._undone():
            try:
                part.save()
            except StorageError as error:
                self._emit("rows not kept", level="warning", unit=part.unit.index, why=str(error))
