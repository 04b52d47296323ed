"""A lock file: one process at a time, freed by the kernel when its holder dies, however it dies."""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Self

from batch.errors import InputError, OutputLockedError
from batch.storage.location import Location, reason

LOCK_PATIENCE = 1.0  # seconds: a run that ends just now lets go within them
_held: set[int] = set()  # descriptors of locks


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


# or a forked child would hold its parent's lock beyond the parent's death
os.register_at_fork(after_in_child=_let_go)


class Lock:
    """A held lock. Build it with :meth:`take`; use it as a context manager, or let go of it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, what: str) -> Self:
        """Lock `path`, which holds the holder's process id meanwhile.

        Raises `OutputLockedError` where another process works on `what`, `OSError` where there can be no such
        file.
        """
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:
                continue  # a run that finished took the directory away just now
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    os.truncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                    _held.add(descriptor)
                    return cls(path, descriptor)
            except FileNotFoundError:
                pass  # locked, but its holder had removed the file: lock the one that takes its place
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    holder = os.read(descriptor, 20).decode(errors="replace")
                    os.close(descriptor)
                    message = f"another run (process {holder}) works on {what}; wait for it to end"
                    raise OutputLockedError(message) from error
                time.sleep(0.05)
            os.close(descriptor)

    @property
    def held(self) -> bool:
        return self._descriptor in _held

    def release(self, remove: bool = False) -> None:
        """Let go, and `remove` the file. Once is enough; again does nothing."""
        if self.held:
            if remove:
                with contextlib.suppress(OSError):
                    self.path.unlink()
            _held.discard(self._descriptor)
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release(remove=True)


def lock_output(output: str) -> contextlib.AbstractContextManager[object]:
    """Keep every other run off `output`, wherever it keeps its unfinished work. A remote store has
    no locks.
    """
    location = Location.of(output)
    if not location.local:
        return contextlib.nullcontext()
    folder, name = os.path.split(location.path)
    path = Path(os.path.realpath(folder), f".{name}.lock")
    try:
        # Not Lock.take's own mkdir: a folder that is not there is a slip of the pen.
        os.stat(folder)
        return Lock.take(path, location.name)
    except OSError as error:
        raise InputError(f"cannot write {location.name}: {reason(error)}; choose another output") from error
