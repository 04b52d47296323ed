"""The engine process's loop, with an engine that only counts."""

import queue
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from batch.engine import AdapterSpec, Completion
from batch.engine.process import AHEAD, _loop

SEQS = 8


class Counting:
    """Finishes at each step half of what it may run at once, and asks to be stopped when nothing is left."""

    def __init__(self, inbox: "queue.SimpleQueue[tuple[str, Any]]", total: int) -> None:
        self.inbox, self.left = inbox, total
        self.queued: list[int] = []
        self.most = 0

    @property
    def in_flight(self) -> int:
        return len(self.queued)

    def facts(self) -> dict[str, Any]:
        return {"max_num_seqs": SEQS}

    def load(self, adapter: AdapterSpec) -> dict[str, Any]:
        return {}

    def add(self, adapter: str, key: int, request_ids: Sequence[int]) -> None:
        self.queued.append(key)
        self.most = max(self.most, self.in_flight)

    def step(self) -> list[Completion]:
        done, self.queued = self.queued[: SEQS // 2], self.queued[SEQS // 2 :]
        self.left -= len(done)
        if not self.left:
            self.inbox.put(("stop", None))
        return [Completion(key, (), (), "stop") for key in done]


def test_work_that_cannot_run_yet_waits_outside_the_engine() -> None:
    """Adding a request costs a millisecond: thousands at once kept the first ones waiting for seconds."""
    inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    inbox.put(("work", ("a", [(key, [key]) for key in range(100)])))
    engine, sent = Counting(inbox, 100), []
    _loop(SimpleNamespace(send=sent.append), inbox, engine)  # type: ignore[arg-type]
    assert [each.key for _, (done, _) in sent for each in done] == list(range(100))
    assert SEQS < engine.most <= AHEAD * SEQS
