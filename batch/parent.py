"""A child process in an interpreter of its own, and what it does about the parent that started it."""

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from batch.errors import ENDING

PR_SET_PDEATHSIG = 1  # prctl(2)
LAST_LINES = 3  # of a dead child's log, in its error, of
LOG_TAIL = 1 << 16  # bytes
STOP_SECONDS = 5
# What the new interpreter runs: it finds this package where the parent found it, whatever the directory.
BOOT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).serve(*sys.argv[3:])"
)


def start_child(
    module: str, log: IO[bytes], environment: Mapping[str, str]
) -> tuple[Connection, "subprocess.Popen[bytes]"]:
    """Run a module's `serve` in a child, whose output goes to `log`; returns this end of its pipe. `serve`
    gets the number of the other end, and what :func:`tie_to` takes.

    It is a new interpreter, not a fork: the parent has threads (Arrow's, the tokenizer's), and a forked CUDA
    context would be broken. Not `multiprocessing` either: it runs the caller's script again, which would need
    a main guard.

    It leads a process group: :func:`kill` ends what it has started too, and Ctrl-C in a terminal reaches the
    parent alone, which decides.
    """
    conn, theirs = multiprocessing.Pipe()
    given = (json.dumps(sys.path), module, str(theirs.fileno()), str(own_id()))
    with _signals_wait():  # the child inherits that until it can ignore them
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, *given],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            process_group=0,
        )
    theirs.close()
    return conn, process


def kill(child: "subprocess.Popen[bytes]") -> None:
    """End a child at once, and what it has started, also where it is gone already. That may end by itself
    first, and clear up.
    """
    child.kill()
    deadline = time.monotonic() + STOP_SECONDS
    while (left := _group(child.pid) - {child.pid}) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _group(leader: int) -> set[int]:
    """The processes of a child's group that run. Without multiprocessing's tracker, which ends as the last
    and removes the shared memory of the others.
    """
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _, group, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            # no stranger, to whom the number of one that ended was given
            ours = int(group) == leader and int(session) == os.getsid(0) and state != "Z"
            if ours and b"resource_tracker" not in (path / "cmdline").read_bytes():
                found.add(int(path.name))
    return found


def how_it_died(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> str:
    """A dead child's exit code or signal, and its last lines."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    code = process.returncode
    how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    if lines := log_lines(log.fileno()):
        how += f"; its last lines: {' / '.join(lines[-LAST_LINES:])}"
    return how


def log_lines(descriptor: int) -> list[str]:
    """The end of a log, line by line; nothing of what is no file."""
    with contextlib.suppress(OSError):
        end = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, LOG_TAIL, max(0, end - LOG_TAIL)).decode(errors="replace")
        return [line.strip()[:200] for line in tail.splitlines() if line.strip()]
    return []


def first_message(descriptor: str, parent: str) -> tuple[Connection, Any]:
    """What `serve` begins with: its end of the pipe, and what comes first; ends where the parent is gone."""
    tie_to(int(parent))
    for number in ENDING:  # a service's stop reaches every process; the parent decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    conn = Connection(int(descriptor))
    try:
        return conn, conn.recv()
    except (EOFError, OSError):
        raise SystemExit(0) from None


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """What would end the process is held back in the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def own_id() -> int:
    """What to give a child for :func:`tie_to`: this process's id, or 0 where a thread starts the child (the
    kernel would take the thread's end for the parent's).
    """
    return os.getpid() if threading.current_thread() is threading.main_thread() else 0


def tie_to(parent: int) -> None:
    """Die with the parent, however it dies: a child left behind would keep its GPU or its memory."""
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
