"""The engine's process and what it has started."""

import os
import signal
import time
from pathlib import Path

import pytest

from batch import parent
from batch.engine import EngineSpec
from batch.engine.supervisor import Supervisor
from tests.batch.test_run import alive

# As vLLM's engine that spans devices: a part in a process of its own, and memory that both share.
SPANNING = """
import json, os, subprocess, sys
sys.path[:] = json.loads(sys.argv[1])
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from batch.engine import worker
part, shared = subprocess.Popen(["sleep", "600"]), SharedMemory(create=True, size=8)
Path(os.environ["PARTS"]).write_text(f"{part.pid} {shared.name}")
worker.serve(*sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("signalled", "abandoned"),
    [(None, False), (signal.SIGKILL, False), (signal.SIGSTOP, False), (None, True)],
)
def test_no_part_outlives_its_engine(
    signalled: int | None, abandoned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part would keep its GPU, and the next engine find no memory."""
    monkeypatch.setattr(parent, "BOOT", SPANNING)
    monkeypatch.setenv("PARTS", str(tmp_path / "parts"))
    engine = Supervisor(EngineSpec("replay", "", "", 99, 4))
    engine.start()
    part, shared = (tmp_path / "parts").read_text().split()
    assert alive(int(part)) and os.getpgid(int(part)) == engine.pid != os.getpgrp()
    if signalled:
        os.kill(engine.pid, signalled)
    if abandoned:
        engine.abandon()
        assert gone(engine.pid)
    engine.close()
    assert gone(int(part)) and gone(engine.pid)
    deadline = time.monotonic() + 10
    while Path(f"/dev/shm/{shared}").exists():  # its tracker lives a little longer
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(process: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(process)
