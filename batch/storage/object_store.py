"""A folder of an object store as a :class:`batch.storage.store.Store`.

A write is whole by itself and nothing is renamed; what must not be written over is written with a condition.
There a request may be repeated by the client because its answer was lost, and meet its own work: it is known
by its bytes, which hold whose they are.
"""

import contextlib
import dataclasses
import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

import pyarrow as pa

from batch.errors import StorageError, shown
from batch.storage.bucket import Bucket
from batch.storage.location import CHUNK, Location, Status, reason, storage_error

Found = TypeVar("Found")
TRIES = 5  # of a write that meets others', or no answer
UNSURE = (errno.EEXIST, errno.ESTALE, errno.EBUSY, errno.ETIMEDOUT)  # whether the write was done


class ObjectStore:
    """The objects of a bucket below one key. `scratch` is a folder of this machine for files on their way."""

    def __init__(self, root: Location, bucket: Bucket, scratch: Path | None = None) -> None:
        self.root, self._bucket, self._scratch = root, bucket, scratch

    def create(self, name: str, data: bytes) -> bool:
        return self._lies_there(name, data, None)

    def replace(self, name: str, data: bytes, over: str | None, like: Status = None) -> None:
        if not self._lies_there(name, data, over):
            raise written_meanwhile(self._name(name))

    def _lies_there(self, name: str, data: bytes, over: str | None) -> bool:
        """Write `data` in the place of the version `over`; whether it does lie there then."""
        for patience in range(TRIES):
            try:
                self._bucket.put(self._path(name), data, mode=_in_place_of(over) if over else "create")
                return True
            except OSError as error:
                if error.errno not in UNSURE:
                    raise storage_error(self._name(name), error) from error
            if self.version(name) != over:
                return self.read(name) == data
            time.sleep(0.1 * 2**patience)  # or another's was in the way, and failed too
        raise StorageError(f"cannot write {self._name(name)}: others write to it; run again to resume")

    def version(self, name: str) -> str | None:
        """Its etag and, where the store numbers versions, the number: Google's asks for that."""
        try:
            meta = self._bucket.head(self._path(name))
            return " ".join(filter(None, (meta["e_tag"], meta["version"])))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unread(self._name(name), error) from error

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(self._bucket.open_input_file(self._path(name)).read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unread(self._name(name), error) from error

    def names(self, folder: str) -> list[str]:
        path = self._path(folder) if folder else self.root.path
        try:
            return sorted(info.path[len(self.root.path) + 1 :] for info in self._bucket.below(path))
        except OSError as error:
            raise _unread(self._name(folder), error) from error

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Location]:
        try:
            with tempfile.NamedTemporaryFile(dir=self._scratch, prefix=".", suffix=".partial") as file:
                yield Location.of(file.name)
                self._bucket.put(self._path(name), Path(file.name))
        except (pa.ArrowException, OSError) as error:
            raise storage_error(self._name(name), error) from error

    def assemble(
        self,
        name: str,
        size: int,
        write: Callable[[BinaryIO], None],
        check: Callable[[Location], Found],
        last: Callable[[], None],
    ) -> Found:
        try:
            with self._bucket.upload(self._path(name), size) as sink:
                write(sink)
                last()
        except OSError as error:
            raise storage_error(self._name(name), error) from error
        return check(self.location(name))

    def intact(self, name: str, size: int, sha256: str) -> bool:
        """Its bytes are the store's to keep; the proof reads them."""
        try:
            return bool(self._bucket.head(self._path(name))["size"] == size)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unread(self._name(name), error) from error

    def location(self, name: str) -> Location:
        return self.root.inside(name)

    @contextlib.contextmanager
    def at_hand(self, name: str) -> Iterator[Location]:
        """A copy on this machine, unless it would take more than half of the room that is left."""
        with tempfile.NamedTemporaryFile(dir=self._scratch, prefix=".", suffix=".partial") as file:
            copied = self._copy(name, file)
            here = dataclasses.replace(Location.of(file.name), name=self._name(name))
            yield here if copied else self.location(name)

    def _copy(self, name: str, file: IO[bytes]) -> bool:
        try:
            with self._bucket.open_input_stream(self._path(name)) as source:
                if 2 * source.size() > shutil.disk_usage(file.name).free:
                    return False
                shutil.copyfileobj(source, file, CHUNK)
        except OSError as error:
            raise _unread(self._name(name), error) from error
        file.flush()
        return True

    def remove(self, name: str) -> None:
        try:
            self._bucket.delete_file(self._path(name))
        except OSError as error:
            raise storage_error(self._name(name), error) from error

    def sweep(self, names: Iterable[str]) -> None:
        """Nothing goes: a store has no locks, so others may be at work there."""

    def lay_out(self, part: str, folder: Location, name: str, like: Status = None) -> str:
        """Where it lies already."""
        return self.location(part).path[len(folder.path) + 1 :]

    def _path(self, name: str) -> str:
        return self.location(name).path

    def _name(self, name: str) -> str:
        return self.location(name).name


def _in_place_of(version: str) -> dict[str, str]:
    return dict(zip(("e_tag", "version"), version.split(" "), strict=False))


def written_meanwhile(name: str) -> StorageError:
    return StorageError(
        f"{shown(name)} was written by another run meanwhile; run again, what is done is kept"
    )


def _unread(name: str, error: OSError) -> StorageError:
    return StorageError(f"cannot read {shown(name)}: {reason(error)}; run again to resume")
