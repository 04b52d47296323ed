"""Where files lie and how they come to lie there: whole or not at all.

A file is written under a temporary name beside its own, synced, renamed into place, and its directory synced.
So a reader finds the old file, the new one or none, whenever the writer died. The temporary name is short, so
that it fits where the file's own does, and cannot be guessed, so that nobody can lay a link there; its
leading dot hides it from a directory that is read as input. What a killed run left goes when the file is next
written.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from batch.errors import FULL, LASTING, OPTIONS, USER, BatchRouteError, InputError, StorageError, shown
from batch.storage.bucket import Bucket
from batch.storage.remote import SCHEMES

CHUNK = 1 << 20  # bytes read at a time
Status = os.stat_result | None


def printable(name: str) -> str:
    """`name` as UTF-8, bytes that are not valid in it escaped."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def reason(error: BaseException) -> str:
    """A foreign exception on one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def storage_error(name: str, error: BaseException) -> StorageError:
    """`error` while writing `name`, as exit code 75 with a remedy."""
    if getattr(error, "errno", None) in FULL or "No space left" in str(error):
        return StorageError(f"{shown(name)}: no space left; free some space, then run again to resume")
    return StorageError(
        f"cannot write {shown(name)}: {reason(error)}; correct that, then run again to resume"
    )


def refused_or_failed(what: str, error: OSError, remedy: str) -> InputError | StorageError:
    """An `OSError` from before any work, by its cause: exit code 2 for what a rerun would meet again, 75 for
    the rest.
    """
    if not error.errno or error.errno in LASTING:
        return InputError(f"{shown(what)}: {reason(error)}; {remedy}")
    if error.errno in FULL:
        return StorageError(f"{shown(what)}: no space left; free some space, then run again")
    return StorageError(f"{shown(what)}: {reason(error)}; run again")


def is_local(source: str | Path) -> bool:
    """Whether a path or a URI is on this machine; asks no store."""
    scheme, separator, _ = os.fspath(source).partition("://")
    return not separator or scheme.lower() == "file"


def absolute(path: str) -> str:
    """The path from the root, as the system means it: `..` behind a link to a folder is that folder's parent,
    which is not where the link lies.
    """
    parts = path.split("/")
    end = len(parts) - parts[::-1].index("..") if ".." in parts else 0
    up = os.path.realpath("/".join(parts[:end])) if end else ""
    return os.path.abspath(os.path.join(up, *parts[end:]) if end else path)


@dataclasses.dataclass(frozen=True)
class Location:
    """A path on one of pyarrow's filesystems. `name` is what the user called it."""

    filesystem: fs.FileSystem
    path: str
    name: str

    @classmethod
    def of(cls, source: str | Path) -> "Location":
        """The location of a local path or a URI; raises `InputError` for a URI that pyarrow cannot open."""
        source = os.fspath(source)
        if not source.strip():
            raise InputError("an empty path (is a variable unset?); name a file")
        if printable(source) != source:
            raise InputError(f"{printable(source)}: the name is not valid UTF-8; rename the file")
        if "\0" in source:
            raise InputError(f"{source}: no name can hold a NUL byte; correct it")
        if "://" not in source:
            return cls(fs.LocalFileSystem(), absolute(source), source)
        scheme, _, rest = source.partition("://")
        if (scheme := scheme.lower()) in SCHEMES:
            return cls._in_store(source, scheme, rest)
        if scheme not in ("file", "hdfs"):
            raise InputError(
                f"cannot open {shown(source)}: no store is called {scheme}; copy the file here first"
            )
        try:
            filesystem, path = fs.FileSystem.from_uri(f"{scheme}://{rest}")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"cannot open {shown(source)}: {reason(error)}; check the URI") from error
        return cls(filesystem, path, shown(source))

    @classmethod
    def _in_store(cls, source: str, scheme: str, path: str) -> "Location":
        authority = path.partition("/")[0]
        if not authority:
            raise InputError(f"cannot open {shown(source)}: it names no bucket; write {scheme}://bucket/path")
        if OPTIONS.search(source) or USER.search(source):
            why = "it holds credentials or options, which are not read"
            raise InputError(f"cannot open {shown(source)}: {why}; set them in the environment")
        if not {"", ".", ".."}.isdisjoint(path.rstrip("/").split("/")):
            why = "a segment of its path is empty, `.` or `..`"
            raise InputError(f"cannot open {shown(source)}: {why}; correct the address, or rename the object")
        return cls(fs.PyFileSystem(Bucket(scheme, authority)), path.rstrip("/"), source.rstrip("/"))

    @property
    def bucket(self) -> Bucket | None:
        """The store that it lies in; None for what is on a file system."""
        return self.filesystem.handler if isinstance(self.filesystem, fs.PyFileSystem) else None

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def sibling(self, prefix: str, suffix: str) -> "Location":
        """The location whose file name has `prefix` before and `suffix` after it."""
        folder, slash, base = self.path.rpartition("/")
        parent, name_slash, name = self.name.rpartition("/")
        path = f"{folder}{slash}{prefix}{base}{suffix}"
        return Location(self.filesystem, path, f"{parent}{name_slash}{prefix}{name}{suffix}")

    def at(self, path: str) -> "Location":
        """The location of another path on the same file system."""
        scheme = self.name.partition("://")[0]
        return Location(self.filesystem, path, path if self.local else f"{scheme}://{path}")

    def open(self) -> pa.NativeFile:
        """The file's bytes, for reading anywhere in them."""
        return self.filesystem.open_input_file(self.path)

    def stamp(self) -> tuple[int, int | str | None]:
        """Size in bytes and time of change in ns, or the version that a store gives (None where neither is
        kept). Raises `FileNotFoundError`.
        """
        if bucket := self.bucket:
            meta = bucket.head(self.path)
            return meta["size"], meta["e_tag"]
        info = self.filesystem.get_file_info(self.path)
        if info.type != fs.FileType.File:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        return info.size, info.mtime_ns

    @property
    def base(self) -> str:
        """Its name in its folder."""
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> "Location":
        name = self.name.rpartition("/")[0] if "/" in self.name else "."
        return Location(self.filesystem, self.path.rpartition("/")[0] or "/", name or "/")

    def inside(self, name: str) -> "Location":
        """The location of a file in this folder."""
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}", f"{self.name.rstrip('/')}/{name}")

    def status(self) -> Status:
        """Mode and owner of a file on this machine; None where there is none."""
        with contextlib.suppress(OSError):
            return os.stat(self.path) if self.local else None
        return None

    def exists(self) -> bool:
        return bool(self.filesystem.get_file_info(self.path).type == fs.FileType.File)

    def sha256(self) -> str:
        """sha256 (hex) of the file's bytes, read a chunk at a time."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.path) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def remove(self) -> None:
        """Delete the file if it is there, durably."""
        if self.exists():
            self.filesystem.delete_file(self.path)
            self.sync_folder()

    def sync(self) -> None:
        """Flush the file to the disk. A remote store has it once the stream is closed."""
        if self.local:
            _fsync(self.path)

    def sync_folder(self) -> None:
        if self.local:
            _fsync(os.path.dirname(self.path))


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(location: Location, unique: bool = False, like: Status = None) -> Iterator[Location]:
    """Give a temporary location to write a file at; it takes the name of `location` when the block ends
    without an error, and the mode and, where that is permitted, the owner and group of the file that lies
    there, or else those in `like`.

    After an error, `location` is as it was and the temporary file is gone. Raises `StorageError`. A `unique`
    name is one that nobody wrote before: its folder is not searched for what killed writers of it left. In
    an object store nothing is renamed: see `batch.storage.object_store`.
    """
    like = location.status() or like
    temporary, held = _temporary(location, unique, 0o600 if like else 0o666)
    try:
        yield temporary
        temporary.sync()
        if like:  # last: whoever writes it opens it by its name
            take_after(held, like)
            os.fsync(held)
        location.filesystem.move(temporary.path, location.path)
        location.sync_folder()
    except BaseException as error:
        with contextlib.suppress(OSError, pa.ArrowException):
            temporary.remove()
        if isinstance(error, (OSError, pa.ArrowException)) and not isinstance(error, BatchRouteError):
            raise storage_error(location.name, error) from error
        raise
    finally:
        os.close(held)


def take_after(file: int | Path, like: os.stat_result) -> None:
    """Give a file, open or not, the mode and, where that is permitted, the owner and group in `like`."""
    for owner, group in ((-1, like.st_gid), (like.st_uid, -1)):
        with contextlib.suppress(PermissionError):
            os.chown(file, owner, group)
    os.chmod(file, stat.S_IMODE(like.st_mode))


def _temporary(location: Location, unique: bool, mode: int) -> tuple[Location, int]:
    """A new name beside `location`, and a locked descriptor of the empty file. What killed writers left goes:
    nobody has it locked. Raises `StorageError`.
    """
    folder, slash, base = location.path.rpartition("/")
    stem = f".{hashlib.sha256(base.encode()).hexdigest()[:16]}."
    name = f"{stem}{secrets.token_hex(8)}.partial"
    temporary = Location(location.filesystem, f"{folder}{slash}{name}", f"{name} for {location.name}")
    try:
        # not a glob, which is slow where a folder holds thousands of files
        for left in () if unique else os.listdir(folder or "/"):
            if left.startswith(stem) and left.endswith(".partial"):
                remove_unlocked(Path(folder or "/", left))
        made = os.open(temporary.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, mode)
        fcntl.flock(made, fcntl.LOCK_EX)
    except OSError as error:
        raise storage_error(location.name, error) from error
    return temporary, made


def remove_unlocked(left: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
        finally:
            os.close(descriptor)


def write_file(
    location: Location | Path, data: bytes | pa.Buffer, unique: bool = False, like: Status = None
) -> None:
    """Write `data` as a whole file, durably, replacing an older one, unless its name is `unique`; see
    :func:`replacing`. Raises `StorageError`.
    """
    location = location if isinstance(location, Location) else Location.of(location)
    if bucket := location.bucket:
        try:
            bucket.put(location.path, data)
        except OSError as error:
            raise storage_error(location.name, error) from error
        return
    with replacing(location, unique, like) as file, file.filesystem.open_output_stream(file.path) as stream:
        stream.write(data)
