"""A bucket or a container as what pyarrow reads from, and what whole objects are written to.

An object is read as the version that it was when it was opened; one that is replaced meanwhile is noticed.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa
from pyarrow import fs

from batch.storage.remote import AZURE, SCHEMES, asked, client

BLOCK = 1 << 20  # bytes that a small read brings with it
STREAM_BLOCK = 8 << 20  # the same where a file is read from its start to its end
LEAST_CHUNK = 8 << 20  # bytes of a part of an upload, of which there may be
MOST_CHUNKS = 10_000
UPLOADS = 4  # parts on their way at once


class Bucket(fs.FileSystemHandler):  # type: ignore[misc]
    """What pyarrow asks of a file system, of a bucket or a container. Paths are ``bucket/key``.

    It reads, and deletes. What is written is whole at once (:meth:`upload`, :meth:`put`); nothing is renamed.
    """

    def __init__(self, scheme: str, authority: str) -> None:
        self.root, self.authority = f"{SCHEMES[scheme]}://{authority}", authority

    @property
    def identity(self) -> tuple[str, ...]:
        """What is the same for one bucket under all its addresses: Azure's may leave out the account."""
        scheme, _, name = self.root.partition("://")
        if scheme not in AZURE:
            return scheme, name
        container, _, host = name.partition("@")
        default = f"{os.environ.get('AZURE_STORAGE_ACCOUNT_NAME', '')}.dfs.core.windows.net"
        return "azure", (host or default).lower().replace(".blob.", ".dfs.", 1), container

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bucket) and other.identity == self.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __reduce__(self) -> tuple[Any, ...]:
        scheme, _, authority = self.root.partition("://")
        return Bucket, (scheme, authority)

    def key(self, path: str) -> str:
        return path.removeprefix(self.authority).strip("/")

    def head(self, path: str, first: bool = False) -> Any:
        """Size, time and etag of an object. Raises `FileNotFoundError`, `OSError`."""
        import obstore

        return asked(obstore.head, client(self.root, first), self.key(path))

    def put(self, path: str, data: Any, mode: Any = "overwrite") -> None:
        """Write an object whole. With ``mode="create"``, or ``{"e_tag": …, "version": …}`` of what it
        replaces, raises `FileExistsError` or an `OSError` of `ESTALE` where another lies there.
        """
        import obstore

        asked(obstore.put, client(self.root), self.key(path), data, mode=mode)

    def probe(self, path: str) -> None:
        """Write, read and delete `path`, with little patience. Raises `OSError`."""
        import obstore

        store, key = client(self.root, True), self.key(path)
        asked(obstore.put, store, key, b"probe")
        with contextlib.suppress(FileNotFoundError):  # another run's probe of this output has ended
            asked(lambda: obstore.get(store, key).bytes())
            asked(obstore.delete, store, key)

    @contextlib.contextmanager
    def upload(self, path: str, expected: int) -> Iterator[BinaryIO]:
        """A stream to write an object of about `expected` bytes to. It is there once the block has ended
        without an error; after one, what lay there before still does. Raises `OSError`.
        """
        import obstore

        chunk = max(LEAST_CHUNK, 2 * expected // MOST_CHUNKS)
        writer = obstore.open_writer(
            client(self.root), self.key(path), buffer_size=chunk, max_concurrency=UPLOADS
        )
        try:
            yield cast(BinaryIO, _Upload(writer))
        except Exception as error:
            asked(writer.__exit__, type(error), error, error.__traceback__)  # which takes back what was sent
            raise
        asked(writer.close)

    def get_type_name(self) -> str:
        return "object-store"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return list(map(self._info, paths))

    def _info(self, path: str) -> fs.FileInfo:
        if self.key(path):
            with contextlib.suppress(FileNotFoundError):
                return self._file_info(self.head(path, first=True))
        below = next(self.below(path, first=True), None)
        there = below is not None or not self.key(path)
        return fs.FileInfo(path, fs.FileType.Directory if there else fs.FileType.NotFound)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        import obstore

        if selector.recursive:
            return list(filter(_no_marker, self.below(selector.base_dir)))
        within = self.key(selector.base_dir) or None
        found: Any = asked(obstore.list_with_delimiter, client(self.root), within)
        folders = [f"{self.authority}/{key}" for key in found["common_prefixes"]]
        files = filter(_no_marker, map(self._file_info, found["objects"]))
        return [*(fs.FileInfo(path, fs.FileType.Directory) for path in folders), *files]

    def below(self, path: str, first: bool = False) -> Iterator[fs.FileInfo]:
        """Every object whose key begins with that of a folder. Raises `OSError`."""
        import obstore

        stream = obstore.list(client(self.root, first), self.key(path) or None)
        while chunk := asked(next, stream, None):
            yield from map(self._file_info, chunk)

    def _file_info(self, meta: Any) -> fs.FileInfo:
        modified = int(meta["last_modified"].timestamp() * 1e9)
        path = f"{self.authority}/{meta['path']}"
        return fs.FileInfo(path, fs.FileType.File, size=meta["size"], mtime_ns=modified)

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(Object(self, path, BLOCK), "r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(Object(self, path, STREAM_BLOCK), "r")

    def delete_file(self, path: str) -> None:
        """It need not be there."""
        import obstore

        with contextlib.suppress(FileNotFoundError):
            asked(obstore.delete, client(self.root), self.key(path))

    def _refused(self, *arguments: Any) -> Any:
        raise NotImplementedError("objects are written whole and never renamed")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refused
    move = copy_file = open_output_stream = open_append_stream = _refused


def _no_marker(file: fs.FileInfo) -> bool:
    """Consoles write an empty object to show a folder."""
    return bool(file.size or "." in file.base_name)


class Object(io.RawIOBase):
    """One version of an object, read by ranges."""

    def __init__(self, bucket: Bucket, path: str, block: int) -> None:
        self._store, self._key, self._block = client(bucket.root), bucket.key(path), block
        meta = bucket.head(path)
        self._size, self._etag, self._at = meta["size"], meta["e_tag"], 0
        self._start, self._held = 0, memoryview(b"")  # the block that was read last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        start = self._at
        stop = self._size if size is None or size < 0 else min(self._size, start + size)
        if stop <= start:
            return b""
        if not self._start <= start <= stop <= self._start + len(self._held):
            self._start = start - start % self._block if stop - start < self._block else start
            self._held = self._fetched(self._start, min(self._size, max(stop, self._start + self._block)))
        self._at = stop
        return bytes(self._held[start - self._start : stop - self._start])

    def _fetched(self, start: int, stop: int) -> memoryview:
        import obstore

        options: Any = {"range": (start, stop), "if_match": self._etag}
        return memoryview(asked(lambda: obstore.get(self._store, self._key, options=options).bytes()))


class _Upload(io.RawIOBase):
    """Takes bytes for an upload; whoever began it ends it."""

    def __init__(self, writer: Any) -> None:
        self._writer, self._written = writer, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: Any) -> int:
        asked(self._writer.write, data)
        self._written += len(data)
        return len(data)
