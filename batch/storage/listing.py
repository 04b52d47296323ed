"""Which files an INPUT names: each is read, or named as skipped with the reason.

In a directory every Parquet file below it is read, whatever its name: Athena's have no extension, pandas' end
in `.parquet.gzip`. Not read are hidden files and folders (`.x`, `_x`, but `_day=1` is a partition), what is
no Parquet, and what its name calls a leftover. A table that has a log of its own is refused (see
`batch.storage.tables`). Folders called `key=value` below the named one are Hive partitions.
"""

import dataclasses
import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from batch.errors import BatchRouteError, InputError
from batch.storage.guard import note
from batch.storage.location import Location, printable, reason, refused_or_failed
from batch.storage.manifest import part_names, read_manifest
from batch.storage.tables import may_be_sign, refuse_table

PARQUET = re.compile(r"\.(parquet|parq|pqt?)(\.(gz|gzip|snappy|zstd?|lz4|brotli|lzo|br))?$", re.IGNORECASE)
LEFTOVER = re.compile(
    r"(\.(tmp|temp|bak|backup|old|orig|part|partial|crdownload|inprogress|swp|crc)|~)$", re.IGNORECASE
)
PARTITION = re.compile(r"([^=/]+)=(.*)", re.DOTALL)
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
HEADS = (b"PAR1", b"PARE")  # the latter is encrypted; opening it says so


@dataclasses.dataclass(frozen=True)
class Found:
    """A file to read, and the values of its partition keys (None where there is none)."""

    location: Location
    partitions: tuple[tuple[str, str | None], ...] = ()


@dataclasses.dataclass(frozen=True)
class Listing:
    files: tuple[Found, ...]
    skipped: tuple[tuple[str, str], ...] = ()  # (path, why)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A file, a folder, or what is neither, below the root; folders come before what is in them."""

    parts: tuple[str, ...]
    kind: str  # file, folder, gone (a link to nothing), other
    key: object = None  # device and inode


def files_of(source: str) -> Listing:
    """The files of a path, a directory or a glob, in order of path. Raises `InputError`."""
    location = Location.of(source)
    try:
        info = location.filesystem.get_file_info(location.path)
        note(location.name)  # the store has answered
        if info.type == fs.FileType.File:
            refuse_tables_above(location, location.path, up=1)
            return Listing((Found(location),))
        if location.local and os.path.lexists(location.path) and info.type != fs.FileType.Directory:
            raise InputError(f"{location.name} is a link to nothing, a device or a pipe; name a file")
        if location.bucket and (manifest := read_manifest(location.inside("manifest.json"))):
            return Listing(tuple(Found(location.inside(name)) for name in part_names(manifest)))
        root, pattern = (location.path, ()) if info.type == fs.FileType.Directory else _glob(location)
        return _listed(location, root.rstrip("/") or "/", pattern)
    except OSError as error:
        raise _unreadable(location, error) from error
    except pa.ArrowException as error:
        raise InputError(f"cannot read {location.name}: {reason(error)}; check the path") from error


def _unreadable(location: Location, error: OSError) -> BatchRouteError:
    """Names what cannot be read, which may lie deep in the folder."""
    place = location if error.filename is None else location.at(error.filename)
    closed = location.local and isinstance(error, PermissionError)
    remedy = "check its permissions" if closed else "check the path"
    return refused_or_failed(f"cannot read {printable(place.name)}", error, remedy)


def would_read(source: str, path: str) -> bool:
    """Whether a file that comes to lie at `path` would be among those of a directory or a glob."""
    location, target = Location.of(source), Location.of(path)
    if location.filesystem != target.filesystem:
        return False
    try:
        kind = location.filesystem.get_file_info(location.path).type
        if kind == fs.FileType.File:
            return False
        root, pattern = (location.path, ()) if kind == fs.FileType.Directory else _glob(location)
    except (InputError, OSError):
        return False  # there is no such input; who opens it says so
    if location.local:
        root, target = os.path.realpath(root), Location.of(os.path.realpath(target.path))
    parts = tuple(os.path.relpath(target.path, root).split("/"))
    return ".." not in parts and not any(map(_hidden, parts)) and _matches(parts, pattern)


def _glob(location: Location) -> tuple[str, tuple[str, ...]]:
    """The folder that a glob starts in, and its pattern by segments. What is there under its very name is no
    pattern.
    """
    if not re.search(r"[*?\[]", location.path):
        raise InputError(f"no file {location.name}; check the path")
    lead = "/" if location.path.startswith("/") else ""
    segments = location.path.strip("/").split("/")
    root = ""
    for index, segment in enumerate(segments):
        under = f"{root}/{segment}" if root else lead + segment
        literal = not re.search(r"[*?\[]", segment)
        if not literal and location.filesystem.get_file_info(under).type == fs.FileType.NotFound:
            return root or lead, tuple(segments[index:])
        root = under
    raise InputError(f"no file {location.name}; check the path")


def _listed(location: Location, root: str, pattern: tuple[str, ...]) -> Listing:
    files: list[Found] = []
    skipped: list[tuple[str, str]] = []
    seen: dict[object, str] = {}
    refuse_tables_above(location, root)
    for entry in sorted(_entries(location, root, pattern), key=lambda each: each.parts):
        path = "/".join((root.rstrip("/"), *entry.parts))
        if pattern and not _matches(entry.parts, pattern):
            continue
        if why := _unread(location, path, entry, bool(pattern) and len(entry.parts) == len(pattern)):
            skipped.append((printable(path), why))
        elif entry.key is not None and entry.key in seen:
            skipped.append((printable(path), f"the same file as {seen[entry.key]}"))
        elif printable(path) != path:
            raise InputError(f"{printable(path)}: the name is not valid UTF-8; rename the file")
        elif entry.kind == "gone":
            raise InputError(
                f"cannot read {path}: it is a link to a file that is not there; mend or remove it"
            )
        else:
            seen[entry.key] = path
            files.append(Found(location.at(path), _partitions(entry.parts)))
    if not files:
        left = "; ".join(f"{os.path.basename(path)} was skipped: {why}" for path, why in skipped[:3])
        raise InputError(
            f"no Parquet file matches {location.name}{f' ({left})' if left else ''}; check the path"
        )
    return Listing(tuple(files), tuple(skipped))


def _entries(location: Location, root: str, pattern: tuple[str, ...]) -> Iterator[_Entry]:
    """All files below `root`, as deep as the pattern goes, and the hidden folders, unopened."""
    if location.local:
        yield from _local(root, (), pattern, set())
        return
    deep = not pattern or len(pattern) > 1 or not PARQUET.search(pattern[-1])
    hidden: set[tuple[str, ...]] = set()
    tables: set[tuple[str, ...]] = set()
    for info in location.filesystem.get_file_info(fs.FileSelector(root, recursive=deep)):
        parts = tuple(info.path[len(root) :].strip("/").split("/"))
        first = next((index for index, part in enumerate(parts) if _hidden(part)), len(parts))
        within = first < len(parts) - (info.type != fs.FileType.Directory)  # a hidden folder, or in one
        table = parts[:first] if within else parts[:-2]
        if table not in tables and _may_hold(table, pattern) and may_be_sign(parts[len(table) :]):
            tables.add(table)
            refuse_table(location, "/".join((root, *table)))
        if within:
            if parts[: first + 1] not in hidden:
                hidden.add(parts[: first + 1])
                yield _Entry(parts[: first + 1], "folder")
        elif info.type == fs.FileType.File:
            yield _Entry(parts, "file")


def _local(
    root: str, parts: tuple[str, ...], pattern: tuple[str, ...], above: set[tuple[int, int]]
) -> Iterator[_Entry]:
    folder = os.path.join(root, *parts)
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in above:
        return  # a link to a folder that it lies in
    above = above | {(status.st_dev, status.st_ino)}
    if parts and printable(folder) == folder:
        refuse_table(Location.of("/"), folder)
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        inner = (*parts, entry.name)
        try:
            status = entry.stat()
        except OSError as error:  # whoever opens what this user may not see into says so
            yield _Entry(inner, "file" if isinstance(error, PermissionError) else "gone")
            continue
        if not entry.is_dir():
            yield _Entry(inner, "file" if entry.is_file() else "other", (status.st_dev, status.st_ino))
        elif _hidden(entry.name):
            yield _Entry(inner, "folder")
        elif not pattern or _may_hold(inner, pattern):
            yield from _local(root, inner, pattern, above)


def _hidden(name: str) -> bool:
    """`lost+found` is what fsck saves, in the root of a volume, and only root may look into it."""
    if name.startswith("_"):
        return not PARTITION.fullmatch(name)
    return name.startswith(".") or name == "lost+found"


def _unread(location: Location, path: str, entry: _Entry, asked_for: bool) -> str | None:
    """Why a file is not read; None where it is. `asked_for`: by the last part of a glob."""
    name = entry.parts[-1]
    if _hidden(name):
        return "hidden"
    if entry.kind == "other":
        return "a device, a pipe or a socket"
    leftover = LEFTOVER.search(name)
    if leftover and not asked_for:
        return f"its name ends in {leftover[0]}"
    if PARQUET.search(name):
        return None
    if entry.kind == "gone":
        return "a link to a file that is not there" if "." in name else None
    try:
        with open(path, "rb") if location.local else location.filesystem.open_input_stream(path) as file:
            return None if file.read(4) in HEADS else "not Parquet"
    except OSError as error:
        error.filename = path  # a store's does not say which it is of
        raise


def unread(path: Path) -> str | None:
    """Why a local file, or what else lies there, is not read when its folder is; None where it is."""
    if path.is_dir():
        return "a folder"
    kind = "file" if path.is_file() else "gone" if not path.exists() else "other"
    return _unread(Location.of("/"), str(path), _Entry((path.name,), kind), False)


def _may_hold(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a folder can hold what a pattern names."""
    for part, segment in zip(parts, pattern, strict=False):
        if segment == "**":
            return True
        if not _one(part, segment):
            return False
    return True


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a pattern names a file, or a folder that it lies in."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[index:], pattern[1:]) for index in range(len(parts)))
    return bool(parts) and _one(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _one(part: str, segment: str) -> bool:
    return part == segment or fnmatch.fnmatchcase(part, segment)


def _partitions(parts: tuple[str, ...]) -> tuple[tuple[str, str | None], ...]:
    pairs = [match.groups() for match in map(PARTITION.fullmatch, parts[:-1]) if match]
    return tuple((_unquoted(key), None if value == NO_VALUE else _unquoted(value)) for key, value in pairs)


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise InputError(f"the folder name {text!r} is not valid UTF-8 once decoded; rename it") from error


def refuse_tables_above(location: Location, path: str, up: int = 0) -> None:
    """A part of a table is no table either, nor is a link to one. `up` leaves out a file's own name."""
    for place in {path, os.path.realpath(path)} if location.local else {path}:
        for depth in range(up, len(place.split("/"))):
            refuse_table(location, place.rsplit("/", depth)[0])
