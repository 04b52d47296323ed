"""What a file does to its reader stays in the child: a death, a flood of memory, silence; then the next one is read."""

import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import InputError, StorageError
from batch.storage import guard
from batch.storage.backlog import Backlog
from batch.storage.guard import guarded, note
from batch.storage.units import Plan


def die() -> None:
    note("in.parquet")
    os.kill(os.getpid(), signal.SIGABRT)


def flood() -> int:
    return len(bytearray(2 << 30))


def silence() -> None:
    time.sleep(60)


def refuse() -> None:
    raise InputError("in.parquet is no good; write it again")


def me() -> int:
    return os.getpid()


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (die, "in.parquet is damaged: Parquet's reader ends on it"),
        (flood, "expands beyond the 768 MiB"),
        (silence, "in.parquet did not answer within 0 s"),
        (refuse, "is no good"),
    ],
)
def test_it_stays_in_the_child(monkeypatch: pytest.MonkeyPatch, act: object, why: str) -> None:
    if act is silence:
        monkeypatch.setattr(guard, "REACH", 0.3)
    with pytest.raises(InputError, match=why):
        guarded(act, what="in.parquet")  # type: ignore[arg-type]
    monkeypatch.undo()
    assert guarded(me, what="x") != os.getpid()


def test_one_child_serves_many_calls_and_is_replaced_when_killed() -> None:
    first = guarded(me, what="x")
    assert guarded(me, what="x") == first
    os.kill(first, signal.SIGKILL)
    time.sleep(0.2)
    assert guarded(me, what="x") not in (first, os.getpid())


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "from batch.storage.guard import guarded; import os, signal\nprint(guarded(os.getpid, what='x'), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    child = Path(f"/proc/{int(done.stdout)}")
    deadline = time.monotonic() + 10
    while (
        child.exists() and "\nState:\tZ" not in (child / "status").read_text() and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert not child.exists() or "\nState:\tZ" in (child / "status").read_text()


# An input that changes under a run


def put(path: Path, word: str, rows: int = 3000) -> None:
    table = pa.table(
        {"id": [f"{row}" for row in range(rows)], "request": [f"{word} {row}" for row in range(rows)]}
    )
    pq.write_table(table, path, row_group_size=500)


@pytest.mark.parametrize("how", ["renamed over", "rewritten", "appended", "removed", "same size and time"])
def test_a_changed_input_is_noticed_while_it_is_read(tmp_path: Path, how: str) -> None:
    path, other = tmp_path / "in.parquet", tmp_path / "other.parquet"
    put(path, "old")
    put(other, "new")
    backlog = Backlog.open(str(path), "id", "request")
    backlog.check_ids()
    batches = backlog.batches(size=256)
    next(batches)
    before = path.stat()
    match how:
        case "renamed over":
            os.replace(other, path)
        case "rewritten":
            path.write_bytes(other.read_bytes())
        case "appended":
            with path.open("ab") as file:
                file.write(b"more")
        case "removed":
            path.unlink()
        case _:
            put(path, "old", 2999)
            path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0")[: before.st_size])
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if how != "same size and time":
        with pytest.raises(StorageError, match=r"in\.parquet was changed while it was read"):
            list(batches)
    with pytest.raises(StorageError, match=r"in\.parquet was changed while it was read"):
        backlog.verify()
    with pytest.raises(StorageError, match=r"in\.parquet was changed while it was read"):
        backlog.repeated_texts(Plan.of(backlog.rows))
