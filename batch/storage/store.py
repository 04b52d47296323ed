"""Where the parts and receipts of a job lie, and the files of its output: names in a folder, each written
whole or not at all.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from batch.errors import BatchRouteError
from batch.storage.location import (
    Location,
    Status,
    refused_or_failed,
    remove_unlocked,
    replacing,
    storage_error,
    take_after,
    write_file,
)
from batch.storage.object_store import ObjectStore, written_meanwhile

Found = TypeVar("Found")
PARTIAL = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{16}\.partial")  # see `batch.storage.location.replacing`
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


class Store(Protocol):
    """Names are relative, with slashes. Raises `StorageError`."""

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` as `name` unless something lies there; whether it does now lie there by this call."""

    def replace(self, name: str, data: bytes, over: str | None, like: Status = None) -> None:
        """Write `data` as `name` in the place of its version `over`, or of nothing; on a file system with the
        mode and owner in `like`.
        """

    def version(self, name: str) -> str | None:
        """What changes when `name` does; None where nothing lies there."""

    def read(self, name: str) -> bytes | None: ...

    def names(self, folder: str) -> list[str]:
        """Sorted names in a folder, which need not be there. In an object store also those in its folders."""

    def writing(self, name: str) -> contextlib.AbstractContextManager[Location]:
        """A local file to write, which lies as `name`, that nothing had before, once the block has ended
        without an error.
        """

    def assemble(
        self,
        name: str,
        size: int,
        write: Callable[[BinaryIO], None],
        check: Callable[[Location], Found],
        last: Callable[[], None],
    ) -> Found:
        """Have a file of about `size` bytes written as `name`; returns what `check` finds in it. `last` is
        called when nothing else is left to do before older bytes go.
        """

    def intact(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file is there as it was written, as far as it can be told without a download."""

    def location(self, name: str) -> Location: ...

    def at_hand(self, name: str) -> contextlib.AbstractContextManager[Location]:
        """A file that is to be read more than once, near enough for that."""

    def remove(self, name: str) -> None: ...

    def sweep(self, names: Iterable[str]) -> None:
        """Remove what no receipt speaks of, if nobody can be at work on it."""

    def lay_out(self, part: str, folder: Location, name: str, like: Status = None) -> str:
        """Give a part its place in an output folder as `name`; the name that it does have there. On a file
        system it takes the mode and owner of what lies there, or else those in `like`.
        """


class LocalStore:
    """A folder of this machine, or of a file system that several share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, name: str, data: bytes) -> bool:
        """A hard link to a file that is durable already: it is made whole, and only where there is none."""
        path = self.root / name
        temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                _give_name(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            Location.of(path).sync_folder()
        except OSError as error:
            raise storage_error(str(path), error) from error
        return True

    def replace(self, name: str, data: bytes, over: str | None, like: Status = None) -> None:
        """Whoever replaces holds the output's lock."""
        if self.version(name) != over:
            raise written_meanwhile(str(self.root / name))
        write_file(self.root / name, data, like=like)

    def version(self, name: str) -> str | None:
        try:
            status = (self.root / name).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(name, error) from error
        return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: OSError) -> BatchRouteError:
        return refused_or_failed(f"cannot read {self.root / name}", error, "correct that, or move it away")

    def names(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            inside = f"{folder}/" if folder else ""
            return sorted(f"{inside}{name}" for name in os.listdir(self.root / folder) if name[0] != ".")
        return []

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Location]:
        try:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(name, error) from error
        with replacing(self.location(name), unique=True) as temporary:
            yield temporary

    def assemble(
        self,
        name: str,
        size: int,
        write: Callable[[BinaryIO], None],
        check: Callable[[Location], Found],
        last: Callable[[], None],
    ) -> Found:
        with replacing(self.location(name)) as temporary:
            with temporary.filesystem.open_output_stream(temporary.path) as sink:
                write(sink)
            temporary.sync()
            found = check(temporary)
            last()
        return found

    def intact(self, name: str, size: int, sha256: str) -> bool:
        try:
            return self.location(name).sha256() == sha256
        except FileNotFoundError:
            return False

    def location(self, name: str) -> Location:
        return Location.of(self.root / name)

    def at_hand(self, name: str) -> contextlib.AbstractContextManager[Location]:
        return contextlib.nullcontext(self.location(name))

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def sweep(self, names: Iterable[str]) -> None:
        for name in names:
            self.remove(name)

    def lay_out(self, part: str, folder: Location, name: str, like: Status = None) -> str:
        """The same file under another name, whole at once; a copy where the two lie on different disks."""
        source, path = self.root / part, Path(folder.path) / name
        path.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if path.samefile(source):
                return name
        temporary = path.with_name(f".{secrets.token_hex(8)}.{secrets.token_hex(8)}.partial")
        like = Location.of(path).status() or like
        try:
            os.link(source, temporary)
            if like:
                take_after(temporary, like)
            temporary.replace(path)  # the output's own, in a run of the same job again, until then
        except OSError:
            temporary.unlink(missing_ok=True)
            with replacing(Location.of(path), like=like) as copy:
                shutil.copyfile(source, copy.path)
        return name


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left in a folder, whatever it was to become."""
    for path in folder.iterdir():
        if PARTIAL.fullmatch(path.name):
            remove_unlocked(path)


def _give_name(temporary: Path, path: Path) -> None:
    """A hard link, or where the file system has none (FAT), first an empty file, which nobody takes for a
    whole one.

    Raises `FileExistsError`.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        path.touch(exist_ok=False)
        temporary.replace(path)


def store_at(folder: Location, scratch: Path | None = None) -> Store:
    """The files of a folder, wherever it is."""
    bucket = folder.bucket
    return LocalStore(Path(folder.path)) if bucket is None else ObjectStore(folder, bucket, scratch)
