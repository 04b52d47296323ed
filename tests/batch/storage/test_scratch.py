"""Folders for the time that a process lives."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from batch.storage.scratch import YOUNG, scratch

HOLDER = (
    "from batch.storage.scratch import scratch\nwith scratch() as own:\n print(own, flush=True)\n input()"
)


def test_what_a_killed_process_left_goes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is in use, nor what may be as new as its lock, nor what is named alike."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    others = [tmp_path / name for name in ("batch-route-examples", "batch-route-abcdefgh.scratch.old")]
    for other in others:
        other.mkdir()
    with (
        subprocess.Popen([sys.executable, "-c", HOLDER], stdin=-1, stdout=-1, text=True) as killed,
        subprocess.Popen([sys.executable, "-c", HOLDER], stdin=-1, stdout=-1, text=True) as alive,
    ):
        assert killed.stdout and alive.stdout
        left, used = (Path(out.readline().strip()) for out in (killed.stdout, alive.stdout))
        (left / "answers").write_text("x")
        killed.kill()
        killed.wait()
        with scratch():
            assert left.exists()
        for path in (left, used, *others):
            os.utime(path, (0, path.stat().st_mtime - 2 * YOUNG))
        with scratch() as own:
            assert sorted(tmp_path.iterdir()) == sorted([own, used, *others])
        alive.communicate("\n")
    assert sorted(tmp_path.iterdir()) == sorted(others)
