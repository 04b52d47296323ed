"""What a file does to its reader stays in the child: a death, a flood of memory, silence; then the next one is read."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import InputError, StorageError
from batch.storage import guard
from batch.storage.backlog import Backlog
from batch.storage.guard import guarded, note
from batch.storage.hashing import Int64s
from batch.storage.units import Plan


def die() -> None:
    note("in.parquet")
    os.kill(os.getpid(), signal.SIGABRT)


def flood() -> int:
    return len(bytearray(2 << 30))


def silence() -> None:
    time.sleep(60)


def be_killed(number: int) -> None:
    note("in.parquet")
    os.kill(os.getpid(), number)


def leave(code: int) -> None:
    os._exit(code)


def fail(code: int) -> None:
    """As a module does that knows only that a file could not be read."""
    try:
        raise OSError(code, os.strerror(code))
    except OSError as error:
        raise InputError("cannot read in.parquet: that failed; check the path") from error


def refuse() -> None:
    raise InputError("in.parquet is no good; write it again")


def hold(size: int, refused: bool = False) -> int:
    held: Int64s = np.empty(size // 8, np.int64)
    if refused:
        refuse()
    return held.nbytes


def me() -> int:
    return os.getpid()


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (die, "in.parquet is damaged: Parquet's reader ends on it"),
        (flood, "expands beyond the 768 MiB"),
        (refuse, "is no good"),
    ],
)
def test_it_stays_in_the_child(monkeypatch: pytest.MonkeyPatch, act: object, why: str) -> None:
    with pytest.raises(InputError, match=why):
        guarded(act, what="in.parquet")  # type: ignore[arg-type]
    assert guarded(me, what="x") != os.getpid()


def test_a_call_may_hold_what_it_asks_for_and_the_next_one_may_not() -> None:
    large = 1 << 30
    assert guarded(hold, large, what="in.parquet", extra=large) == large
    with pytest.raises(InputError, match="is no good"):
        guarded(hold, large, True, what="in.parquet", extra=large)
    assert guarded(hold, 512 << 20, what="in.parquet") == 512 << 20, "what a refused call held is not freed"
    for extra, bound in ((0, "768 MiB"), (large, "1792 MiB")):
        with pytest.raises(InputError, match=f"expands beyond the {bound} that its reader may take"):
            guarded(hold, large + extra, what="in.parquet", extra=extra)


@pytest.mark.parametrize(
    ("act", "number", "why"),
    [
        (be_killed, signal.SIGKILL, r"reads in\.parquet was killed \(signal 9\)"),
        (be_killed, signal.SIGTERM, r"reads in\.parquet was killed \(signal 15\)"),
        (leave, 1, r"reads in\.parquet exited with 1; run again"),
        (fail, errno.EIO, r"cannot read in\.parquet: that failed; run again"),
        (fail, errno.ESTALE, r"cannot read in\.parquet: that failed; run again"),
    ],
)
def test_what_is_not_the_files_fault_may_be_tried_again(act: Any, number: int, why: str) -> None:
    with pytest.raises(StorageError, match=why):
        guarded(act, number, what="in.parquet")


def test_a_slow_machine_is_no_stores_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's start, which takes seconds under load, is not counted against a store's first word; a
    local file has no such time at all.
    """
    guard.stop()
    assert guarded(me, what="s3://bucket/in.parquet", reach=0.5) != os.getpid()
    with pytest.raises(StorageError, match=r"in\.parquet did not answer within 0 s; .* run again"):
        guarded(silence, what="in.parquet", reach=0.3)
    monkeypatch.setattr(guard, "PATIENCE", 0.3)
    with pytest.raises(StorageError, match=r"in\.parquet gave nothing for 0 s; run again"):
        guarded(silence, what="in.parquet", reach=0.3)


@pytest.mark.parametrize(
    ("limit", "bound"), [(resource.RLIMIT_AS, 600 << 20), (resource.RLIMIT_DATA, 200 << 20)]
)
def test_a_machine_without_memory_is_not_the_files_fault(limit: int, bound: int) -> None:
    code = (
        "from batch.errors import StorageError; from batch.storage.guard import guarded\n"
        "try: guarded(bytearray, 700 << 20, what='in.parquet')\n"
        "except StorageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(limit, (bound, bound)),
    )
    assert done.stdout.startswith("out of memory while in.parquet was read"), done


def test_one_child_serves_many_calls_and_is_replaced_when_killed() -> None:
    first = guarded(me, what="x")
    assert guarded(me, what="x") == first
    os.kill(first, signal.SIGKILL)
    time.sleep(0.2)
    assert guarded(me, what="x") not in (first, os.getpid())


def test_paths_are_relative_to_where_the_program_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert guarded(os.getcwd, what="x") == str(tmp_path / name)
        put(Path("in.parquet"), name, rows=3)
        assert Backlog.open(".", "id", "request").files[0].location.path.endswith(f"{name}/in.parquet")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert guarded(me, what="x") != os.getpid()


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
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
