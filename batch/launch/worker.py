"""Who scores units: one engine, fed without a pause, that leaves a part and a receipt for each."""

import contextlib
import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

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
        # of the units that were taken, in order: those whose rows are all there, and the others
        self._writing: deque[tuple[PartWriter, Future[Tally]]] = deque()
        self._parts: deque[PartWriter] = deque()

    @property
    def taken(self) -> list[Unit]:
        """The units that were taken and are not done."""
        return [part.unit for part in self._undone()]

    def _undone(self) -> list[PartWriter]:
        parts = [*(part for part, _ in self._writing), *self._parts]
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
                with ThreadPoolExecutor(1) as pool:
                    while units.more():
                        chunks = self._chunks(units, scorer.feed_rows)
                        for scored in scorer.score(chunks, task.backlog.text_column, task.schema):
                            # not always the first: of some units all rows had been kept
                            next(part for part in self._parts if not part.full).add(scored)
                            self._finish(units, pool)
                        self._finish(units, pool)
                self._told(most=0)
            finally:
                with contextlib.suppress(StorageError):
                    self._told(most=0)
                for part in self._undone():
                    part.save()
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

    def _finish(self, units: Units, pool: Executor) -> None:
        """Have the parts and receipts of the units written whose rows are all there."""
        while self._parts and self._parts[0].full:
            self._writing.append((self._parts[0], pool.submit(self._write, self._parts[0], units)))
            self._parts.popleft()
        self._told(most=1)  # each holds a unit's rows

    def _write(self, part: PartWriter, units: Units) -> Tally:
        """In a thread of its own. Returns what there is to tell of the part."""
        receipts = self._receipts
        try:
            receipt, tally = part.finish(receipts.store, self._task.id_column, self._proved, receipts.job)
            receipts.add(receipt)
        except BaseException:
            units.stop()  # who waits for another unit hears of it
            raise
        part.forget()
        units.done()
        return tally

    def _told(self, most: int) -> None:
        """Tell of the parts that are written, and wait until no more than `most` are not. Raises
        `StorageError` where one could not be.
        """
        while self._writing and (len(self._writing) > most or self._writing[0][1].done()):
            tally = self._writing[0][1].result()
            self._writing.popleft()
            self._committed(tally)
