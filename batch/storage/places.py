"""Where a run reads and writes: no two of its places may be one, whatever they are called."""

import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyarrow import fs

from batch.errors import InputError
from batch.storage.listing import would_read
from batch.storage.location import Location, absolute, is_local, printable, reason, refused_or_failed
from batch.storage.manifest import (
    OUTPUT_PART,
    SUCCESS,
    is_folder,
    is_own_part,
    manifest_location,
    named_parts,
)
from batch.storage.mounts import mount_points
from batch.storage.store import store_at

NAME_BYTES = 255  # of a file's name, at most
LONGEST_SUFFIX = ".manifest.json"  # of the files beside an output
MADE = {  # names of a run's own in folders in which others may write too
    "--work-dir": r".*\.work(-.*|\.lock)?",
    "--cache": r"answers\.sqlite.*",
    "the registry": r"[0-9a-f]{64}|aliases|promotions\.jsonl|\..*",
}
HEAD_BYTES = 1 << 16  # of a file, from which is told whose it is: a report's title may hold a long path
WRITTEN = {  # by a run, by option: how the file begins, and what is in its head
    "--metrics": (b"# HELP batch_route_", b""),
    "--report": (b"<!doctype html>", b"batch-route report</title>"),
}
Places = Mapping[str, str | Path | None]  # by option; None is not asked for


def check_output(source: str, output: str, folders: Places) -> None:
    """Refuse, before any work, an output or folders that cannot be written, or that are one another's or the
    input's place: `InputError`.
    """
    if not is_local(output):
        check_store(Location.of(output))
    elif not is_folder(output):
        check_writable(output, suffix=LONGEST_SUFFIX)
    if is_folder(output):
        _check_output_folder(output)
    given = check_folders(folders)
    _refuse_same({"the input": source, "output": output, **given})
    _refuse_in_input(source, "output", _file_of(output))
    if work := given.get("--work-dir"):
        _refuse_in_input(source, "--work-dir", work, os.path.join(work, "x.work", "shards", "x.parquet"))


def check_outlets(source: str, output: str, outlets: Places, kept: Places | None = None) -> None:
    """Refuse, before any work, files beside the output that cannot be written, or that would be written over
    it, what belongs to it, one another or the input, which is empty where nobody knows it, or in what is
    `kept` for others: `InputError`. The output itself is not asked.
    """
    given = {what: path for what, path in outlets.items() if path is not None}
    for what, path in given.items():
        _refuse_own(output, what, path)
    refuse_inside(given, kept or {})
    for what, path in given.items():
        check_writable(path, what)
    manifest = {"the output's manifest": manifest_location(output).path} if is_local(output) else {}
    sources = {"the input": source} if source else {}
    _refuse_same({**sources, "the output": output, **manifest, **given})
    for what, path in given.items():
        for each in sources.values():
            _refuse_in_input(each, what, path)
        refuse_others(what, path, *WRITTEN[what])


def refuse_others(what: str, path: str | Path, beginning: bytes, mark: bytes = b"") -> None:
    """Refuse a file that does not begin so, with `mark` in its head, as what an earlier run wrote by this
    option does, and that is not empty either: `InputError`.
    """
    if not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head and not (head.startswith(beginning) and mark in head):
        why = "is another program's file and would be written over"
        raise InputError(f"{what} {printable(str(path))} {why}; move it away, or choose another place")


def refuse_inside(places: Places, folders: Places) -> None:
    """Refuse a place to write that is one of these folders or lies in it, as far as a run's files do:
    `InputError`.
    """
    kept = {_identity(folder): what for what, folder in folders.items() if folder is not None}
    for what, path in places.items():
        if path is None or not is_local(path):
            continue
        real = Path(os.path.realpath(Location.of(path).path))
        above = (real, *real.parents)
        for folder, name in zip(above, ["", *(each.name for each in above)], strict=False):
            other = kept.get(_identity(folder))
            if other and (not name or re.fullmatch(MADE.get(other, ".*"), name, re.DOTALL)):
                raise InputError(
                    f"{what} {printable(str(path))} lies in {other}'s folder; choose another place"
                )


def _refuse_own(output: str, what: str, path: str | Path) -> None:
    """Refuse what only a run itself may write of its output: `InputError`."""
    if not is_local(output):
        return
    place, real = Location.of(output).path, os.path.realpath(Location.of(path).path)
    inside = os.path.relpath(real, os.path.realpath(place)) if is_folder(output) else ""
    part = "/" not in inside and inside.endswith(".parquet")
    folder, base = os.path.split(place)
    beside = os.path.relpath(real, os.path.realpath(folder)).split("/")[0]
    if (
        part
        or inside in (SUCCESS, "manifest.json")
        or beside == f".{base}.lock"
        or beside.startswith(f".{base}.work")
    ):
        raise InputError(f"{what} {printable(str(path))} is a file of the output's own; choose another place")


def check_writable(output: str | Path, what: str = "output", suffix: str = "") -> None:
    """Refuse, before any work, a file that cannot be written: `InputError`. A remote store is not asked.

    `suffix` is the longest that other files beside it add to its name.
    """
    if not is_local(output):
        return
    location = Location.of(output)
    name = f"{what} {printable(location.name)}"
    folder, base = os.path.split(location.path)
    if os.path.islink(location.path):
        raise InputError(f"{name} is a symbolic link; name the file that it leads to")
    if os.path.isdir(location.path):
        raise InputError(f"{name} is a directory; give the name of a file")
    if os.fspath(output).endswith("/"):
        raise InputError(f"{name}: that directory does not exist; create it first, or leave out the slash")
    if os.path.exists(location.path) and not os.path.isfile(location.path):
        raise InputError(f"{name} is a device or a pipe; give the name of a file")
    if not os.path.isdir(folder):
        raise InputError(f"{name}: its directory does not exist; create it first")
    if os.path.realpath(location.path) in mount_points():
        why = "is a mount point, as a file that a container is given, and cannot be replaced"
        raise InputError(f"{name} {why}; mount the folder that it lies in")
    check_name(base, name, suffix)
    check_folder(folder, name, "choose another place")
    for each in {location.path, f"{location.path}{suffix}"}:
        check_replaceable(each, what)


def check_name(base: str, what: str, suffix: str = LONGEST_SUFFIX) -> None:
    """Refuse a file's name that is too long with the `suffix` of another beside it: `InputError`."""
    if len(os.fsencode(base)) + len(suffix) > NAME_BYTES:
        raise InputError(
            f"{what}: the name is longer than {NAME_BYTES - len(suffix)} bytes; choose a shorter one"
        )


def check_replaceable(path: str, what: str) -> None:
    """Refuse a file that this user may not put another in the place of: `InputError`."""
    try:
        above, file = os.stat(os.path.dirname(path)), os.stat(path)
        if above.st_mode & stat.S_ISVTX and os.geteuid() not in (above.st_uid, file.st_uid):
            os.chmod(path, stat.S_IMODE(file.st_mode))
    except FileNotFoundError:
        return
    except PermissionError as error:
        why = "it is another user's file in a folder where only its owner may replace it"
        raise InputError(f"cannot write {what} {printable(path)}: {why}; choose another place") from error


def check_folders(folders: Places) -> dict[str, str | Path]:
    """Those that are asked for, each of which can be written in. Raises `InputError`."""
    given = {what: folder for what, folder in folders.items() if folder is not None}
    for what, folder in given.items():
        check_folder(folder, f"{what} {printable(str(folder))}", "choose another place")
    return given


def check_folder(folder: str | Path, what: str, remedy: str) -> None:
    """Refuse a folder in which no file can be made, or which cannot be made where it is not there:
    `InputError`.
    """
    path = absolute(os.fspath(folder))
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    probe = os.path.join(path, f".{secrets.token_hex(8)}.probe")
    try:  # os.access would answer yes to root on a read-only mount
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.unlink(probe)
    except OSError as error:
        raise InputError(f"cannot write {what}: {reason(error)}; {remedy}") from error


def _check_output_folder(output: str) -> None:
    """The same for a folder, which need not be there; nor may it hold files that its readers would take for
    rows of this output, or another `_SUCCESS` than a run's, which is empty.
    """
    location = Location.of(output)
    folder = Path(location.path)
    if location.local and not folder.name:
        raise InputError(f"output {location.name} is the root directory; name a folder or a file in it")
    if folder.name.endswith(".parquet"):
        remedy = "leave out the slash for a file, or the .parquet for a folder"
        raise InputError(f"output {printable(location.name)} would be read as a file; {remedy}")
    if location.local and (not folder.is_dir() or folder.is_symlink()):
        # `new/` is refused, as cp and mv do: it may be a misspelt folder
        check_writable(folder if folder.exists() else output, suffix=".work")
        if folder.exists():
            raise InputError(
                f"output {location.name} is a file; name a folder, or a file that ends in .parquet"
            )
        return
    if location.local:
        check_folder(folder, f"output {printable(location.name)}", "choose another place")
        for name in os.listdir(folder):
            if name in (SUCCESS, "manifest.json") or OUTPUT_PART.fullmatch(name):
                check_replaceable(os.path.join(folder, name), "output")
    named = named_parts(output)
    others = [name for name in parquet_in(location) if name not in named and not is_own_part(location, name)]
    if others:
        what = f"holds another Parquet file, {printable(others[0])}"
        raise InputError(f"output {location.name} {what}; name an empty folder")
    success = location.filesystem.get_file_info(location.inside(SUCCESS).path)
    if success.size or success.type == fs.FileType.Directory:
        what = f"holds a {SUCCESS} that is not batch-route's empty file and would be written over"
        raise InputError(f"output {location.name} {what}; move it away, or name an empty folder")


def parquet_in(folder: Location) -> list[str]:
    """Names of the Parquet files that lie in a folder itself."""
    return [name for name in store_at(folder).names("") if name.endswith(".parquet") and "/" not in name]


def check_store(location: Location) -> None:
    """Refuse an output that cannot be written to its store, which a file beside it shows: exit code 2, or 75
    where the store itself fails.
    """
    if not location.bucket:
        raise InputError(f"cannot write to {location.name}: such a store is only read; name another output")
    probe = location.sibling(".", ".probe")  # always the same: what a killed run left goes
    try:
        location.bucket.probe(probe.path)
    except OSError as error:
        what = f"cannot write output {location.name}"
        raise refused_or_failed(what, error, "choose another output") from error


def _file_of(output: str) -> str:
    return f"{output.rstrip('/')}/part.parquet" if is_folder(output) else output


def refuse_inputs(output: str, inputs: Iterable[Location], what: str = "output") -> None:
    """Raises `InputError` where `output` is one of the files that are read, under whatever name."""
    if _identity(output) in map(_identity, inputs):
        raise InputError(f"{what} {printable(output)} is one of the input's files; choose another name")


def _refuse_same(places: Mapping[str, str | Path]) -> None:
    seen: dict[object, str] = {}
    for what, path in places.items():
        if (other := seen.setdefault(_identity(path), what)) != what:
            raise InputError(f"{what} {printable(str(path))} is {other} as well; choose another place")


def _refuse_in_input(source: str, what: str, path: str | Path, file: str | None = None) -> None:
    """Refuse a `path` where `file`, which comes to lie there, or it itself would be read: `InputError`."""
    if would_read(source, file or os.fspath(path)):
        why = "lies in the input's folder and would be read with it"
        raise InputError(f"{what} {path} {why}; choose another place")


def _identity(place: str | Path | Location) -> object:
    """What is the same for one file under two names: device and inode, or its folder's and its name before it
    is there; in a store, bucket and key.
    """
    location = place if isinstance(place, Location) else Location.of(place)
    if location.bucket:
        return location.bucket, location.bucket.key(location.path)
    if not location.local:
        return location.name
    real = os.path.realpath(location.path)
    try:
        status = os.stat(real)
        return status.st_dev, status.st_ino
    except OSError:
        pass
    try:
        status = os.stat(os.path.dirname(real))
        return status.st_dev, status.st_ino, os.path.basename(real)
    except OSError:
        return real
