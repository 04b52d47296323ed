"""sha256 of large files, remembered from run to run.

To read a base of eight gigabytes takes seven seconds, every night. Its digest is kept in the user's cache
and holds while the file's inode, size and times are the same. Whatever writes to a file, or puts another in
its place, changes one of them: a program can set the time of the last write, but not `ctime`.
"""

import functools
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from batch.storage.digest import file_digest

LARGE = 64 << 20  # bytes; a smaller file is read in no time
SETTLED_NS = 2_000_000_000  # a file that was written this recently may be written again within one tick
Identity = tuple[int, ...]


def known_digest(file: Path) -> str:
    """sha256 of a file, as :func:`file_digest`; a large one that has not changed is not read again."""
    file = file.resolve()
    return _digest(file, _identity(file))


@functools.lru_cache(1024)
def _digest(file: Path, identity: Identity) -> str:
    if file.stat().st_size < LARGE:
        return file_digest(file)
    entry = _cache() / hashlib.sha256(os.fsencode(file)).hexdigest()
    if found := _recall(entry, identity):
        return found
    began = time.time_ns()
    digest = file_digest(file)
    changed_ns = identity[-1]
    if identity == _identity(file) and began - changed_ns > SETTLED_NS:
        _remember(entry, identity, digest)
    return digest


def _identity(file: Path) -> Identity:
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "batch-route", "digests")


def _recall(entry: Path, identity: Identity) -> str | None:
    """What this user remembered of a file with this identity; None where there is nothing to go by."""
    try:
        with open(os.open(entry, os.O_RDONLY | os.O_NOFOLLOW), encoding="ascii") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            content = json.load(file)
        return str(content["sha256"]) if content["identity"] == list(identity) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _remember(entry: Path, identity: Identity, digest: str) -> None:
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent)  # readable by its owner alone
        with open(handle, "w", encoding="ascii") as file:
            json.dump({"identity": identity, "sha256": digest}, file)
        os.replace(temporary, entry)
    except OSError:
        return  # without a cache the file is read again
