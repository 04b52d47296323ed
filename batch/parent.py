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
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
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
        )
    theirs.close()
    return conn, process


def how_it_died(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> str:
    """A dead child's exit code or signal, and its last lines."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    code = process.returncode
    how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    with contextlib.suppress(OSError):
        end = os.fstat(log.fileno()).st_size
        tail = os.pread(log.fileno(), LOG_TAIL, max(0, end - LOG_TAIL)).decode(errors="replace")
        if lines := [line.strip()[:200] for line in tail.splitlines() if line.strip()]:
            how += f"; its last lines: {' / '.join(lines[-LAST_LINES:])}"
    return how


def first_message(descriptor: str, parent: str) -> tuple[Connection, Any]:
    """What `serve` begins with: its end of the pipe, and what comes first; ends where the parent is gone."""
    tie_to(int(parent))
    for number in ENDING:  # Ctrl-C and a service's stop reach the whole group; the parent decides
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
