"""A lock file, held by one process, or shared by several; freed by the kernel when a holder dies, however it
dies.
"""

import contextlib
import fcntl
import os
import re
import stat
import time
from pathlib import Path
from typing import Self

from batch.errors import InputError, OutputLockedError
from batch.storage.location import Location, refused_or_failed

LOCK_PATIENCE = 1.0  # seconds: a run that ends just now lets go within them
HOLDER = re.compile(rb"[0-9]{0,19}")  # what a lock file holds; a file that holds more is somebody else's
NO_LOCK = "exists and is not a lock; move it away"
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
    def take(cls, path: Path, what: str, patience: float = LOCK_PATIENCE, *, shared: bool = False) -> Self:
        """Lock `path`, which holds the holder's process id meanwhile; wait for it at most `patience` seconds.
        A `shared` lock keeps off only those who want it for themselves.

        Raises `OutputLockedError` where another process works on `what`, `OSError` where the file
        cannot be made: its folder is missing, or somebody laid a link or a file of their own at its name.
        """
        deadline = time.monotonic() + patience
        while True:
            if path.is_symlink():
                raise FileExistsError(0, f"{path.name} is a symbolic link; move it away")
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except PermissionError as error:
                if not os.path.lexists(path):
                    raise
                why = f"{path.name} is another user's lock; remove it once no run holds it"
                raise PermissionError(error.errno, why) from error
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise FileExistsError(0, f"{path.name} {NO_LOCK}")
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                holder = os.pread(descriptor, 20, 0)
                if os.fstat(descriptor).st_nlink > 1 or not HOLDER.fullmatch(holder):
                    raise FileExistsError(0, f"{path.name} {NO_LOCK}")
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    os.truncate(descriptor, 0)
                    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                    _held.add(descriptor)
                    return cls(path, descriptor)
                os.close(descriptor)  # its holder had removed it: lock the one that takes its place
            except BlockingIOError as error:
                holder = os.pread(descriptor, 20, 0)
                os.close(descriptor)
                if time.monotonic() > deadline:
                    process = f"process {holder.decode(errors='replace')}"
                    message = f"another run ({process}) works on {what}; wait for it to end"
                    raise OutputLockedError(message) from error
                time.sleep(0.05)
            except FileNotFoundError:
                os.close(descriptor)
            except BaseException:
                os.close(descriptor)
                raise

    @classmethod
    def clear(cls, path: Path) -> None:
        """Remove the lock file that a killed holder left; one that is held, or is no lock, stays."""
        if os.path.lexists(path):
            with contextlib.suppress(OSError, OutputLockedError):
                cls.take(path, path.name, patience=0).release()

    @property
    def held(self) -> bool:
        return self._descriptor in _held

    def alone(self) -> bool:
        """Have a shared lock for this process only; False where others hold it: then it may be lost."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def release(self) -> None:
        """Remove the file, unless others share it, and let go. Once is enough; again does nothing."""
        if self.held:
            with contextlib.suppress(OSError):
                if self.alone():
                    self.path.unlink()
            _held.discard(self._descriptor)
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def lock_output(output: str, shared: bool = False) -> contextlib.AbstractContextManager[object]:
    """Keep every other run off `output`, wherever it keeps its unfinished work; with `shared`, those that do
    not share it. A remote store has no locks.
    """
    location = Location.of(output)
    if not location.local:
        return contextlib.nullcontext()
    path = output_lock(location)
    try:
        return Lock.take(path, location.name, shared=shared)
    except OSError as error:
        raise refused_or_failed(f"cannot write {location.name}", error, "choose another output") from error


def output_lock(output: Location) -> Path:
    """The lock file of an output on this machine."""
    folder, name = os.path.split(output.path)
    if not name:
        raise InputError(f"output {output.name} is the root directory; name a folder or a file in it")
    return Path(os.path.realpath(folder), f".{name}.lock")
