"""An engine that outlives its process: restarted when it dies or hangs, and rid of the row that kills it.

What was with the engine when it died is under suspicion and is asked again in halves, each alone, until the
half that kills it is one row. Everything else, new work included, waits meanwhile. A half that survives is
done; the rest is found in as many deaths as it takes to halve a window down to one row.
"""

import contextlib
import dataclasses
import os
import random
import re
import signal
from collections.abc import Sequence
from typing import Any

from batch.engine import AdapterSpec, Asked, Completion, EngineSpec
from batch.engine.process import PATIENCE, EngineProcess
from batch.engine.worker import Usage
from batch.errors import BatchRouteError, EngineError
from batch.events import Emit, nobody

LEAST_SEQS = 8  # requests at once, below which memory is not what it lacks
RESTARTS = 2  # in a row, without a row finished or found guilty in between
GUILTY = 16  # rows at most, if fewer beside them were finished: no rows are that bad, the engine is
STARTS = 64  # of the engine at most, if fewer rows were finished meanwhile, while rows are under suspicion
WITNESS = -1  # the key under which a finished request is asked once more; the router's keys start at 0
OUT_OF_MEMORY = re.compile("out of memory|no available memory for the cache", re.IGNORECASE)
Group = dict[int, tuple[str, Asked]]  # key → adapter and ids of the request


class Supervisor:
    """Speaks to an :class:`EngineProcess` as one speaks to it, and puts another in its place when it fails.

    Raises `EngineError` where the first cannot start, and where restarts do not help.
    """

    def __init__(self, spec: EngineSpec, patience: float = PATIENCE) -> None:
        self._spec, self._patience = spec, patience
        self._engine = EngineProcess(spec, patience)
        self._adapters: dict[str, AdapterSpec] = {}
        self._seen: dict[str, dict[str, Any]] = {}  # what the canary of each showed
        self._running: Group = {}
        self._suspects: list[Group] = []  # each to run alone
        self._alone = False  # whether what runs is a suspect group, which new work must not join
        self._waiting: Group = {}  # work that came while there were suspects
        self._witness: tuple[str, Asked] | None = None  # a request that some engine answered
        self._struck: set[int] = set()  # rows with which, alone, the engine died once
        self._convicted: list[Completion] = []
        self._poison: set[tuple[str, tuple[Any, ...]]] = set()  # what was found guilty, by adapter and ids
        self._deaths = 0  # since the last progress
        # rows, and starts of the engine, since a row was finished that no suspicion fell on
        self._guilty = self._answered = self._started = 0
        self._abandoned = False
        self.restarts = 0
        self.emit: Emit = nobody  # is told of restarts and quarantined requests

    @property
    def facts(self) -> dict[str, Any]:
        return self._engine.facts

    @property
    def usage(self) -> Usage:
        """Of the engine that runs now."""
        return self._engine.usage

    @property
    def pid(self) -> int:
        return self._engine.pid

    def start(self) -> None:
        """See :meth:`EngineProcess.start`. One that does not start is started again only to do less."""
        while True:
            try:
                self._engine.start()
                break
            except EngineError as error:
                if not self._fewer(error):
                    raise
                self._restart(error)
        self._deaths = 0
        mode, wanted = self.facts.get("cudagraph_mode"), self.facts.get("cudagraph_wanted")
        if wanted and mode != wanted:
            self.emit("slower steps", level="warning", cudagraph_mode=mode, wanted=wanted)

    def load(self, adapter: AdapterSpec) -> dict[str, Any]:
        """See :meth:`EngineProcess.load` and :meth:`start`; what is loaded is not loaded again."""
        if self._adapters.get(adapter.name) == adapter:
            return self._seen[adapter.name]
        if not self.facts:
            self.start()
        while True:
            try:
                seen = self._seen[adapter.name] = self._engine.load(adapter)
                self._adapters[adapter.name] = adapter
                return seen
            except EngineError as error:
                if not self._adapters:
                    raise
                self._restart(error)

    def submit(self, adapter: str, work: Sequence[tuple[int, Asked]]) -> None:
        for key, ids in work:
            if self._poison and (adapter, tuple(ids)) in self._poison:
                self._convict(key, "the engine died with this text before")
            else:
                self._waiting[key] = (adapter, ids)
        self._feed()

    def poll(self) -> list[Completion]:
        """At least one completion. A row that kills the engine every time is completed with
        ``finish="error"``.
        """
        while True:
            if self._convicted:
                done, self._convicted = self._convicted, []
                return done
            self._feed()
            if not self._running:  # it died while it was fed
                if not (self._suspects or self._waiting or self._convicted):
                    raise EngineError("the engine has nothing to do; this is a bug, run again to resume")
                continue
            try:
                done = self._engine.poll()
            except EngineError as error:
                self._restart(error)
                continue
            self._deaths = 0
            for each in done:
                request = self._running.pop(each.key)
                self._struck.discard(each.key)  # another router's keys start at 0 again
                if each.finish != "error" and each.key != WITNESS:
                    self._witness = request
            if rows := [each for each in done if each.key != WITNESS]:
                self._answered += (answered := sum(each.finish != "error" for each in rows))
                if answered and not self._alone:
                    self._guilty = self._answered = self._started = 0
                return rows

    def close(self) -> None:
        self._engine.close()

    def abandon(self) -> None:
        """From another thread than the one that waits for the engine: have it fail, and no other started."""
        self._abandoned = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # what it has started ends with it, or when it is closed

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _feed(self) -> None:
        """Hand over a suspect group if nothing else is with the engine, or all that waits if there
        is none.
        """
        if self._running and (self._suspects or self._alone):
            return
        self._alone = bool(self._suspects)
        if self._alone:
            group = self._next_suspect()
        else:
            group, self._waiting = self._waiting, {}
        self._running.update(group)
        by_adapter: dict[str, list[tuple[int, Asked]]] = {}
        for key, (adapter, ids) in group.items():
            by_adapter.setdefault(adapter, []).append((key, ids))
        try:
            for adapter, work in by_adapter.items():
                self._engine.submit(adapter, work)
        except EngineError as error:
            self._restart(error)

    def _next_suspect(self) -> Group:
        """The group that waited longest, so that halves of one group alternate with innocent ones.

        Where one more death would end the run, a request that was answered before: if the engine is sound,
        however many of the suspects are guilty, it answers again. Before any was answered, the canary, on
        which every engine proved itself; of so many suspects that not all can be guilty, a single row of the
        largest group, which most likely is not: an engine that only the canary survives ends soon.
        """
        if self._deaths < RESTARTS:
            return self._suspects.pop(0)
        if self._witness is None and sum(map(len, self._suspects)) > GUILTY:
            largest = max(self._suspects, key=len)
            key = random.choice(list(largest))  # a rerun after a bad choice makes another
            return {key: largest.pop(key)}
        canary = next(iter(self._adapters.values()))
        return {WITNESS: self._witness or (canary.name, canary.canary_ids)}

    def _restart(self, error: EngineError) -> None:
        if self._abandoned:
            raise error
        self._judge()
        if self._guilty > max(GUILTY, self._answered) or self._started > max(STARTS, self._answered):
            self._engine.kill()
            what = f"ended {self._started + 1} times and only {self._answered} rows were finished"
            raise EngineError(f"the engine {what}, {error}") from error
        self._started += 1
        while True:
            self._deaths += 1
            self._engine.kill()
            if self._deaths > RESTARTS:
                raise EngineError(f"after {RESTARTS} restarts without progress, {error}") from error
            self.restarts += 1
            if fewer := self._fewer(error):
                self._spec = dataclasses.replace(self._spec, max_num_seqs=fewer)
            self.emit(
                "engine restarted",
                level="warning",
                why=str(error),
                restarts=self.restarts,
                suspects=sum(map(len, self._suspects)),
            )
            self._engine = EngineProcess(self._spec, self._patience)
            try:
                for adapter in self._adapters.values():
                    self._engine.load(adapter)
                return
            except EngineError as again:
                error = again
            except BatchRouteError as refused:  # what was served here before: the machine is another now
                error = EngineError(f"a restarted engine refuses what it served: {refused}")

    def _fewer(self, error: EngineError) -> int:
        """Half as many requests at once, for the next engine, if this one ran out of memory; else 0."""
        at_once = self._engine.at_once // 2
        return at_once if OUT_OF_MEMORY.search(str(error)) and at_once >= LEAST_SEQS else 0

    def _convict(self, key: int, why: str) -> None:
        self._convicted.append(Completion(key, [], [], "error"))
        self.emit("request quarantined", level="warning", why=why)

    def _judge(self) -> None:
        """Halve what was with the engine. A row with which, alone, it died twice is guilty: an accident is
        not.
        """
        self._running.pop(WITNESS, None)  # the engine's fault, whatever becomes of it
        group, self._running = list(self._running.items()), {}
        if len(group) == 1:
            key, (adapter, ids) = group[0]
            if key in self._struck:
                self._poison.add((adapter, tuple(ids)))
                self._convict(key, "the engine died with it alone, twice")
                self._struck.discard(key)
                self._guilty += 1
                self._deaths = 0
                return
            self._struck.add(key)
        middle = (len(group) + 1) // 2
        self._suspects += [dict(half) for half in (group[:middle], group[middle:]) if half]
