"""Files that nobody vouches for are parsed here first: in a child process of bounded memory.

Parquet's reader ends its process on some damaged footers, by a C++ exception that nothing can catch, and
takes gigabytes for others. So a backlog's footers and pages are read once in a child, which may die; what it
has read whole the run reads again by itself. One child serves a whole process: it is started by the first
call and again after a death.

A death or a silence is the file's fault only where the file can have caused it. A child that somebody else
killed (the kernel's out-of-memory killer, for one), or a machine that has less memory than the reader may
take, says nothing about the file: run again.
"""

import atexit
import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any

from batch.errors import BatchRouteError, InputError, StorageError, ours
from batch.parent import own_id, tie_to

MEMORY = 768 << 20  # bytes of data that the child may hold, whatever the call
ROOM = 512 << 20  # bytes of addresses that its program takes besides
REACH = 10.0  # seconds to the first word of a store, once the child has begun to ask it
PATIENCE = 600.0  # seconds between two words
# What is freed goes back to the kernel at once: glibc would keep pages of some MiB, many columns' worth.
ALLOCATOR = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
OWN_DEATHS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)  # of what it read
STOP_SECONDS = 2.0

_extra = 0  # in the child: bytes that the call under way may hold besides `MEMORY`
_told: Callable[[str], None] = lambda where: None  # noqa: E731  (in the child: tells the parent where it is)


def note(where: str) -> None:
    """Say what is read now, so that a death or a silence can be told by its name."""
    _told(where)


class _Child:
    """A reader's process. `where` is what it last said it read."""

    def __init__(self) -> None:
        self._conn, theirs = Pipe()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": paths}
        given = (str(theirs.fileno()), str(own_id()))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "batch.storage.guard", *given],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env=environment, start_new_session=True,
        )  # fmt: skip
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], what: str, reach: float, extra: int
    ) -> Any:
        patience, where, asking = PATIENCE, what, False
        try:
            self._conn.send((function, arguments, _folder(), extra))
            while self._conn.poll(patience):
                kind, value = self._conn.recv()
                if kind == "done":
                    return value
                if kind == "failed":
                    raise value
                if kind == "memory":
                    raise out_of_memory(where, extra)
                asking = kind == "begun"
                patience, where = (reach if asking else PATIENCE), value or where
        except (EOFError, ConnectionError) as error:
            raise self._died(where, extra) from error
        if asking and reach < PATIENCE:
            what = f"{where} did not answer within {reach:.0f} s; check the address and the network"
            raise StorageError(f"{what}, then run again")
        raise StorageError(f"{where} gave nothing for {patience:.0f} s; run again to resume")

    def _died(self, where: str, extra: int) -> BatchRouteError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        code = self._process.returncode or 0
        if -code not in OWN_DEATHS:
            how = f"was killed (signal {-code}): for want of memory?" if code < 0 else f"exited with {code}"
            return StorageError(f"the process that reads {where} {how}; run again to resume")
        self._log.seek(0)
        last = self._log.read()[-2000:].decode(errors="replace").lower()
        if "crypt" in last:
            return InputError(f"{where} is encrypted; decrypt it first")
        if "bad_alloc" in last or "memory" in last:
            return out_of_memory(where, extra)
        return InputError(f"{where} is damaged: Parquet's reader ends on it; write the file again")

    def close(self) -> None:
        self._conn.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _folder() -> str | None:
    """What relative paths are relative to; a program may change it. None once it is gone."""
    with contextlib.suppress(OSError):
        return os.getcwd()
    return None


def out_of_memory(where: str, extra: int = 0) -> BatchRouteError:
    """What is to be said where memory ran out: the file takes too much only where the reader's own bound was
    the nearest. (The child has this process's limits besides.) `extra` is what the call asked for.
    """
    most = MEMORY + max(extra, _extra)
    addresses, data = resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_DATA)[1]
    bounds = [limit for limit, need in ((addresses, most + ROOM), (data, most)) if 0 <= limit < need]
    if bounds:
        least = f"processes here may take {min(bounds) >> 20} MiB, a reader needs {(most + ROOM) >> 20}"
        return StorageError(f"out of memory while {where} was read ({least}); raise `ulimit`, then run again")
    limit = f"the {most >> 20} MiB that its reader may take"
    return InputError(
        f"{where} expands beyond {limit}; shorten its longest values, write smaller row groups, or leave "
        "columns out"
    )


_child: _Child | None = None
_lock = threading.Lock()


def guarded(
    function: Callable[..., Any], *arguments: Any, what: str, reach: float = PATIENCE, extra: int = 0
) -> Any:
    """``function(*arguments)`` in the child; both ways everything is pickled. `what` is read, by its name;
    where that is in a store, `reach` is the seconds in which its first word is to come. `extra` is the bytes
    that the function holds by itself, whatever it reads: it may have them besides `MEMORY`.

    Raises what the function raises; `InputError` where the child died of what it read, `StorageError` where
    it was ended from outside or hung, or a store did not answer.
    """
    global _child
    with _lock:
        if _child is None or not _child.alive:
            stop()
            _child = _Child()
        child = _child
        try:
            return child.call(function, arguments, what, reach, extra)
        except BaseException as error:
            if not getattr(error, "raised_there", False):  # it died, hangs, or works on what nobody waits for
                stop(at_once=True)
            raise


def stop(at_once: bool = False) -> None:
    """End the child, if there is one."""
    global _child
    if _child:
        with contextlib.suppress(OSError):
            if at_once:
                _child._process.kill()
            _child.close()
        _child = None


atexit.register(stop)


def _serve(conn: Connection, parent: int) -> None:
    """The child's life: one call after another, until the parent is gone."""
    tie_to(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    global _told
    _told = lambda where: conn.send(("at", where))  # noqa: E731
    while True:
        try:
            function, arguments, folder, extra = conn.recv()
        except EOFError:
            return
        if folder:
            os.chdir(folder)
        conn.send(("begun", None))
        _allow(extra)
        conn.send(_answer(function, arguments))
        del function, arguments
        gc.collect()  # a failure and its frames hold each other, and what the call held
        _allow(0)


def _allow(extra: int) -> None:
    """Let the child hold `extra` bytes besides `MEMORY`, as far as its user may."""
    global _extra
    _extra, hard = extra, resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = MEMORY + extra
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard < 0 else min(most, hard), hard))


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "done", function(*arguments)
    except MemoryError:
        return "memory", None
    except Exception as error:
        failure = ours(error)  # here, while its cause is known: that is not pickled
        failure.raised_there = True  # type: ignore[union-attr]
        return "failed", failure


if __name__ == "__main__":
    # the module of this name is another than `__main__`: `note` is asked for there
    from batch.storage import guard

    guard._serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
