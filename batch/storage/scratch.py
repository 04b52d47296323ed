"""A folder of this machine for what one process needs while it lives."""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BEFORE, BEHIND = "batch-route-", ".scratch"
OURS = re.compile(rf"{BEFORE}\w{{8}}{BEHIND}")
YOUNG = 60.0  # seconds in which a new folder is not taken for one that was left: it may not be locked yet


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Locked while the block runs, then removed. What killed processes of this user left goes first."""
    with contextlib.suppress(OSError):
        for path in Path(tempfile.gettempdir()).iterdir():
            if OURS.fullmatch(path.name):
                _remove_left(path)
    with tempfile.TemporaryDirectory(BEHIND, BEFORE) as name, _locked(Path(name)):
        yield Path(name)


def _remove_left(path: Path) -> None:
    with contextlib.suppress(OSError):  # another's, in use, or gone meanwhile
        status = path.lstat()
        old = time.time() - status.st_mtime > YOUNG
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and old:
            with _locked(path):
                shutil.rmtree(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
