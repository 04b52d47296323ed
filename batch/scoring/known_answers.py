"""The answers that a run need not ask its engine for, from stores that it can do without.

A run never stops for want of a store: a damaged one is set aside, a locked or full one is left alone, and the
engine is asked.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from batch.errors import BatchRouteError
from batch.events import Emit
from batch.scoring.cache import FILE, AnswerStore
from batch.scoring.lane import ScoredRow
from batch.scoring.router import Known
from batch.storage.hashing import Int64s

# What is wrong with a store, or where it should lie. SQLite's words on damage may be bytes of the file.
FAULTS = (sqlite3.Error, UnicodeDecodeError, BatchRouteError)
KEPT = 9  # damaged stores that are set aside; the next one stays and is not used
INCIDENTAL = {"threads", "max_num_seqs"}  # facts of an engine that no answer depends on


class Spared:
    """A store that may fail: from then on it knows nothing, and `emit` says so, once."""

    def __init__(self, folder: Path, emit: Emit, opened: Callable[[Path], AnswerStore]) -> None:
        self._folder, self._emit = folder, emit
        self._store: AnswerStore | None = None
        for last in (False, True):
            try:
                self._store = opened(folder)
                return
            except FAULTS as error:
                if not self._failed(error) or last:  # a new one takes the place of a damaged one
                    return

    def recall(self, adapter: str, texts: Sequence[str]) -> dict[str, ScoredRow]:
        try:
            return self._store.recall(adapter, texts) if self._store else {}
        except FAULTS as error:
            self._failed(error)
            return {}

    def remember(self, adapter: str, rows: Mapping[str, ScoredRow]) -> None:
        try:
            if self._store:
                self._store.remember(adapter, rows)
        except FAULTS as error:
            self._failed(error)

    def close(self) -> None:
        try:
            if self._store:
                self._store.close()
        except FAULTS as error:
            self._failed(error)

    def _failed(self, error: Exception) -> bool:
        """Do without the store; whether it was damaged, and is set aside."""
        store, self._store = self._store, None
        if store:
            with contextlib.suppress(*FAULTS):
                store.abandon()
        damaged = not isinstance(error, sqlite3.OperationalError | BatchRouteError)
        path = self._folder / FILE
        if damaged:
            with contextlib.suppress(OSError):
                path.rename(_free(path.with_name(f"{FILE}.damaged")))
                for name in (f"{FILE}-wal", f"{FILE}-shm"):
                    path.with_name(name).unlink(missing_ok=True)
        self._emit("cache set aside", level="warning", path=str(path), why=str(error))
        return damaged


def _free(path: Path) -> Path:
    """A name that nothing has yet. Raises `FileExistsError` where `KEPT` have it."""
    for name in (path.name, *(f"{path.name}-{number}" for number in range(2, KEPT + 1))):
        if not os.path.lexists(free := path.with_name(name)):
            return free
    raise FileExistsError(path)


@contextlib.contextmanager
def known_answers(
    facts: Mapping[str, Any],
    within: Path,
    repeated: Int64s,
    across: Path | None,
    max_bytes: int,
    emit: Emit,
) -> Iterator[Known]:
    """What a run need not ask its engine: texts `repeated` in it, kept in `within`, and those of runs that
    share `across`.

    `facts` is all that an answer depends on beside its text and its adapter's bundle, which holds contract
    and tokenizer.
    """
    served = {name: value for name, value in facts.items() if name not in INCIDENTAL}
    with contextlib.ExitStack() as stack:
        own = Spared(within, emit, lambda folder: AnswerStore.open(folder, served, only=repeated))
        stack.enter_context(contextlib.closing(own))
        if across is None:
            yield Known(own)
            return
        shared = Spared(across, emit, lambda folder: AnswerStore.open(folder, served, max_bytes))
        yield Known(own, stack.enter_context(contextlib.closing(shared)))
