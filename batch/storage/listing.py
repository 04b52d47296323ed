"""Which files an INPUT names: each is read, or named as skipped with the reason.

In a directory every Parquet file below it is read, whatever its name: Athena's have no extension, pandas' end
in `.parquet.gzip`. Not read are hidden files and folders (`.x`, `_x`, but `_day=1` is a partition), what is
no Parquet, and what its name calls a leftover. A table that has a log of its own is refused (see
`batch.storage.tables`); of a folder that a run wrote, the parts are those that its manifest names. Folders
called `key=value` below the named one are Hive partitions.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from batch.errors import BatchRouteError, InputError
from batch.storage.globs import matches, may_hold, split_glob
from batch.storage.guard import note
from batch.storage.location import Location, printable, reason, refused_or_failed
from batch.storage.manifest import part_names, read_manifest
from batch.storage.tables import may_be_sign, refuse_table
from batch.storage.walk import PARTITION, folders, is_hidden, node_of

PARQUET = re.compile(r"\.(parquet|parq|pqt?)(\.(gz|gzip|snappy|zstd?|lz4|brotli|lzo|br))?$", re.IGNORECASE)
LEFTOVER = re.compile(
    r"(\.(tmp|temp|bak|backup|old|orig|part|partial|crdownload|inprogress|swp|crc)|~)$", re.IGNORECASE
)
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
        root, pattern = (location.path, ()) if info.type == fs.FileType.Directory else split_glob(location)
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
    """Whether a file that comes to lie at `path` would be among those of a directory or a glob, by whatever
    way.
    """
    location, target = Location.of(source), Location.of(path)
    if location.filesystem != target.filesystem:
        return False
    try:
        kind = location.filesystem.get_file_info(location.path).type
        if kind == fs.FileType.File:
            return False
        root, pattern = (location.path, ()) if kind == fs.FileType.Directory else split_glob(location)
        ways = _ways(root, pattern, target.path) if location.local else [_below(location.at(root), target)]
        return any(not any(map(is_hidden, parts)) and matches(parts, pattern) for parts in ways)
    except (InputError, OSError):
        return False  # there is no such input; who opens it says so


def _ways(root: str, pattern: tuple[str, ...], path: str) -> Iterator[tuple[str, ...]]:
    """The path of a file of this machine below each folder that it lies in and that is read: by a link or a
    second mount it has others than its name tells.
    """
    real = Path(os.path.realpath(path))
    below: dict[object, tuple[str, ...]] = {}
    for folder in real.parents:
        with contextlib.suppress(OSError):  # not there yet
            below.setdefault(node_of(os.stat(folder)), real.relative_to(folder).parts)
    for parts, node, _ in folders(root, pattern):
        if node in below:
            yield *parts, *below[node]


def _below(root: Location, target: Location) -> tuple[str, ...]:
    """The path in a store of what is there below `root`; beginning with `..` where it is not."""
    keys = (f"/{each.bucket.key(each.path) if each.bucket else each.path}" for each in (target, root))
    return tuple(os.path.relpath(*keys).split("/"))


def _listed(location: Location, root: str, pattern: tuple[str, ...]) -> Listing:
    files: list[Found] = []
    skipped: list[tuple[str, str]] = []
    seen: dict[object, str] = {}
    refuse_tables_above(location, root)
    entries = {entry.parts: entry for entry in _entries(location, root, pattern)}
    outputs = _outputs(location, root, entries)
    for _, entry in sorted(entries.items()):
        path = _path(root, entry.parts)
        if pattern and not matches(entry.parts, pattern):
            continue
        if why := _unread(location, path, entry, bool(pattern) and len(entry.parts) == len(pattern)):
            skipped.append((printable(path), why))
        elif entry.parts not in outputs.get(entry.parts[:-1], [entry.parts]):
            skipped.append((printable(path), "the manifest.json beside it does not name it"))
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


def _outputs(
    location: Location, root: str, entries: dict[tuple[str, ...], _Entry]
) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """The parts of each folder that is an output of a run's, as its manifest names them. Those of a store
    lie in a hidden folder: they join the `entries` in its place.
    """
    outputs = {}
    for *above, name in [parts for parts, entry in entries.items() if entry.kind == "file"]:
        manifest = None
        if name == "manifest.json":
            with contextlib.suppress(InputError):  # one that may not be read counts as another program's
                manifest = read_manifest(location.at(_path(root, (*above, name))))
        if manifest and (names := part_names(manifest)):
            outputs[tuple(above)] = {(*above, *part.split("/")) for part in names}
    for folder, named in outputs.items():
        for parts in named - entries.keys():
            entries.pop(parts[: len(folder) + 1], None)
            key = None
            with contextlib.suppress(OSError):  # whoever opens what is not there says so
                key = node_of(os.stat(_path(root, parts))) if location.local else None
            entries[parts] = _Entry(parts, "file", key)
    return outputs


def _path(root: str, parts: tuple[str, ...]) -> str:
    return "/".join((root.rstrip("/"), *parts))


def _entries(location: Location, root: str, pattern: tuple[str, ...]) -> Iterator[_Entry]:
    """All files below `root`, as deep as the pattern goes, and the hidden folders, unopened."""
    if location.local:
        yield from _local(root, pattern)
        return
    deep = not pattern or len(pattern) > 1 or not PARQUET.search(pattern[-1])
    hidden: set[tuple[str, ...]] = set()
    tables: set[tuple[str, ...]] = set()
    for info in location.filesystem.get_file_info(fs.FileSelector(root, recursive=deep)):
        parts = tuple(info.path[len(root) :].strip("/").split("/"))
        first = next((index for index, part in enumerate(parts) if is_hidden(part)), len(parts))
        within = first < len(parts) - (info.type != fs.FileType.Directory)  # a hidden folder, or in one
        table = parts[:first] if within else parts[:-2]
        if table not in tables and may_hold(table, pattern) and may_be_sign(parts[len(table) :]):
            tables.add(table)
            refuse_table(location, "/".join((root, *table)))
        if within:
            if parts[: first + 1] not in hidden:
                hidden.add(parts[: first + 1])
                yield _Entry(parts[: first + 1], "folder")
        elif info.type == fs.FileType.File:
            yield _Entry(parts, "file")


def _local(root: str, pattern: tuple[str, ...]) -> Iterator[_Entry]:
    for parts, _, entries in folders(root, pattern):
        for entry in entries:
            inner = (*parts, entry.name)
            try:
                node = node_of(entry.stat())
            except OSError as error:  # whoever opens what this user may not see into says so
                yield _Entry(inner, "file" if isinstance(error, PermissionError) else "gone")
                continue
            if not entry.is_dir():
                yield _Entry(inner, "file" if entry.is_file() else "other", node)
            elif is_hidden(entry.name):
                yield _Entry(inner, "folder")


def _unread(location: Location, path: str, entry: _Entry, asked_for: bool) -> str | None:
    """Why a file is not read; None where it is. `asked_for`: by the last part of a glob."""
    name = entry.parts[-1]
    if is_hidden(name):
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
