"""The engine process's loop, with an engine that only counts."""

import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from batch.engine import AdapterSpec, Completion
from batch.engine.worker import AHEAD, work
from tests.conftest import ROOT

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
    engine = Counting(inbox, 100)
    sent: list[Any] = []
    work(SimpleNamespace(send=sent.append), inbox, engine)  # type: ignore[arg-type]
    assert [each.key for _, (done, _) in sent for each in done] == list(range(100))
    assert SEQS < engine.most <= AHEAD * SEQS


def test_a_script_without_a_main_guard_and_a_thread_can_start_one(tmp_path: Path) -> None:
    """`multiprocessing` would run the script again in the engine's process. A folder named `batch` beside the script
    is not taken for ours, and an engine that a thread started lives on when the thread ends.
    """
    (tmp_path / "batch").mkdir()
    (tmp_path / "batch/__init__.py").write_text("raise RuntimeError('the wrong batch')\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, threading, time\n"
        f"sys.path[:0] = [{str(ROOT)!r}]\n"
        "print('once')\n"
        "from batch.engine import EngineSpec\n"
        "from batch.engine.process import EngineProcess\n"
        "made = []\n"
        "thread = threading.Thread(target=lambda: made.append(EngineProcess(EngineSpec('replay', '', '', 99, 4))))\n"
        "thread.start(); thread.join(); time.sleep(0.3)\n"
        "with made[0] as engine:\n"
        "    while not engine.facts: engine.poll(0.1)\n"
        "    print(engine.facts['engine'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "once\nreplay\n", done.stderr
