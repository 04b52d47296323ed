"""Where the parts and receipts of a job lie: names in a folder, each written whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from batch.storage.location import Location, replacing, storage_error


class Store(Protocol):
    """Names are relative, with slashes. Raises `StorageError`."""

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` as `name` unless something lies there; whether it does now lie there by this call."""

    def read(self, name: str) -> bytes | None: ...

    def names(self, folder: str) -> list[str]:
        """Sorted names in a folder, which need not be there."""

    def writing(self, name: str) -> contextlib.AbstractContextManager[Location]:
        """A local file to write, which lies as `name` once the block has ended without an error."""

    def location(self, name: str) -> Location: ...

    def remove(self, name: str) -> None: ...


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
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            Location.of(path).sync_folder()
        except OSError as error:
            raise storage_error(str(path), error) from error
        return True

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(name, error) from error

    def names(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(f"{folder}/{name}" for name in os.listdir(self.root / folder) if name[0] != ".")
        return []

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Location]:
        try:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(name, error) from error
        with replacing(self.location(name)) as temporary:
            yield temporary

    def location(self, name: str) -> Location:
        return Location.of(self.root / name)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
