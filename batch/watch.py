"""`--watch`: a folder in, a folder out; the engine stays warm and routes each file that arrives.

A file is whole once its Parquet footer is there, so one that is still being written is refused and looked at
again when it has changed. Each file is a run of its own: same locks, ledger, proof and manifest. The
adapter's alias is resolved for each anew, so a promoted champion serves from the next file on; a file that an
earlier watch left unfinished is ended by the adapter that began it.

Only a fault of the file's own settles it. Whatever else refused it (no champion yet, the outbox gone, another
watch at work on it, the disk full) may pass, so it is tried again: soon at first, then more seldom.
"""

import contextlib
import dataclasses
import gc
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from batch.adapter.registry import Registry
from batch.errors import (
    AdapterError,
    BacklogError,
    BatchRouteError,
    EngineError,
    InputError,
    Interrupted,
    StorageError,
    ours,
    shown,
    signals_raise,
)
from batch.job import Options, of_the_backlog, work_dir_of
from batch.run import EnginesFor
from batch.storage.guard import guarded
from batch.storage.listing import refuse_tables_above, unread
from batch.storage.location import Location, is_local, reason
from batch.storage.lock import lock_output, output_lock
from batch.storage.manifest import WRITER, manifest_location, read_manifest
from batch.storage.mounts import mount_point, mount_points
from batch.storage.parquet import ParquetSource
from batch.storage.places import check_folders, check_name
from batch.storage.workdir import WorkDir, job_in
from batch.warm import WarmEngines

POLL = 1.0  # seconds between two looks at the folder
PAUSE = 30.0  # seconds after the engine or the machine failed, at least
SOON, LONGEST = 2.0, 60.0  # seconds between two tries of a file that waits for something else
Route = Callable[[Options, EnginesFor], None]  # one file, with a way to get its engines


class Stamp(NamedTuple):
    """What changes when a file does: written, renamed over, or given other permissions."""

    size: int  # bytes
    modified_ns: int
    changed_ns: int
    inode: int


def watch(options: Options, route: Route, say: Callable[[str], None]) -> None:
    """Route every Parquet file in the folder `options.input` to one of the same name, with `.parquet` behind
    it where it ends otherwise, in `options.output`, until a signal. What lies there and is none is said once.

    Raises `InputError` where either is not a folder, `Interrupted` at the end. What else fails is said, once,
    and does not end it.
    """
    for place in (options.input, options.output):
        if not is_local(place):
            raise InputError(f"--watch: {shown(place)} is in a store; name a directory of this machine")
    inbox, outbox = (Path(Location.of(place).path) for place in (options.input, options.output))
    for folder in (inbox, outbox):
        if not folder.is_dir():
            raise InputError(f"--watch: {folder} is not a directory; create it first")
    refuse_tables_above(Location.of(inbox), str(inbox))
    if inbox.resolve() == outbox.resolve():
        raise InputError("--watch: the outputs would be taken for inputs; name another folder for them")
    check_folders(options.folders)
    files: dict[Path, File] = {}
    left: dict[Path, str] = {}
    warm = WarmEngines()
    kept, waiting = Outbox.of(outbox), False
    with signals_raise(), contextlib.closing(warm):
        while True:
            if kept.moved():
                files.clear()  # what was written to another folder is not in this one
            for path, stamp in look(inbox, files, left, say):
                file = files[path] = files[path] if files[path].stamp == stamp else File(stamp)
                if file.settled or time.monotonic() < file.next_try:
                    continue
                was, waiting = waiting, not kept.mounted()
                if waiting:
                    if not was:
                        say(f"{outbox} is not mounted any more; nothing is routed until it is")
                    break
                _try(file, path, outbox / output_name(path.name), options, route, warm, say)
            time.sleep(POLL)


@dataclasses.dataclass
class Outbox:
    """A folder that may be another one later: where a disk is unmounted, what is beneath has its path."""

    path: Path
    place: tuple[int, int]  # device and inode
    mount: str  # where what it lies on is mounted

    @classmethod
    def of(cls, path: Path) -> "Outbox":
        status = path.stat()
        return cls(path, (status.st_dev, status.st_ino), mount_point(path))

    def moved(self) -> bool:
        """Whether it is another folder than the last time; where there is none, each file says so."""
        try:
            now = Outbox.of(self.path)
        except OSError:
            return False
        was, self.place = self.place, now.place
        if self.mounted():
            self.mount = now.mount
        return now.place != was

    def mounted(self) -> bool:
        return self.mount == "/" or self.mount in mount_points()  # a chroot's own root is not listed


@dataclasses.dataclass
class File:
    """What is known of a file in the inbox, as long as its `stamp` stays."""

    stamp: Stamp | None
    settled: bool = False  # routed, or refused for a fault of its own
    since: float = math.inf  # monotonic seconds: the first try
    next_try: float = 0.0
    said: str = ""


def _try(
    file: File,
    path: Path,
    output: Path,
    options: Options,
    route: Route,
    warm: WarmEngines,
    say: Callable[[str], None],
) -> None:
    started = time.monotonic()
    file.since = min(file.since, started)
    try:
        with of_the_backlog():
            Location.of(path)  # a name that is not UTF-8
            check_name(output.name, f"output {output.name}")
        if done(output, file.stamp):
            _tidy(work_dir_of(dataclasses.replace(options, output=str(output))), output)
        else:
            _refuse_taken(path, output)
            refuse_tables_above(Location.of(path), str(path.parent))
            route(_for_file(options, path, output, file.stamp), warm)
        file.settled = True
    except Exception as error:
        _failed(file, path, ours(error), started, say)
    gc.collect()  # the collector is told to come seldom, for a run's sake


def _failed(
    file: File, path: Path, end: BatchRouteError | Interrupted, started: float, say: Callable[[str], None]
) -> None:
    if isinstance(end, Interrupted):
        raise end
    now = time.monotonic()
    file.settled = isinstance(end, BacklogError) and stamp_of(path) == file.stamp
    pause = PAUSE if isinstance(end, EngineError | StorageError) else 0.0
    file.next_try = now + max(pause, min(LONGEST, max(SOON, (now - file.since) / 4, 2 * (now - started))))
    line = f"{path.name}: {end}" + ("" if file.settled else "; it is tried again")
    if line != file.said:
        file.said = line
        say(line)


def output_name(name: str) -> str:
    return name if name.endswith(".parquet") else f"{name}.parquet"


def look(
    inbox: Path, files: dict[Path, File], left: dict[Path, str], say: Callable[[str], None]
) -> list[tuple[Path, Stamp]]:
    """The files that lie there, the oldest first; those that are gone are forgotten. What is not read is
    said, once; of hidden files, somebody's temporary ones, nothing is.
    """
    found, there = {}, list[Path]()
    with contextlib.suppress(OSError):  # the folder is gone: an unmounted disk, for one
        there = [path for path in inbox.iterdir() if not path.name.startswith(".")]
    for path in there:
        stamp, why = stamp_of(path), None if path in files else _why_not(path)
        if stamp and not why:
            found[path] = stamp
        elif why and left.get(path) != why:
            left[path] = why
            say(f"{path.name}: skipped, {why}")
    for path in files.keys() - found.keys():
        del files[path]
    for path in left.keys() - set(there):
        del left[path]
    for path in found:
        files.setdefault(path, File(None))
    return sorted(found.items(), key=lambda each: (each[1].modified_ns, each[0].name))


def _why_not(path: Path) -> str | None:
    """Why what lies there is not read; None where it is, or was taken away meanwhile."""
    if path.is_symlink() and not path.exists():
        return "a link to a file that is not there"
    try:
        return unread(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"it cannot be read ({reason(error)})"


def stamp_of(path: Path) -> Stamp | None:
    """None where the file was taken away meanwhile."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def done(output: Path, stamp: Stamp | None) -> bool:
    """Whether `output` is complete and was made from a file of this stamp, by whatever adapter."""
    manifest = read_manifest(manifest_location(str(output)))
    return manifest is not None and _is_of(manifest["job"], stamp) and output.is_file()


def _tidy(work: Path, output: Path) -> None:
    """Remove what a run left that was killed after the manifest."""
    if WorkDir.left(work) or os.path.lexists(output_lock(Location.of(output))):
        with lock_output(str(output)):
            WorkDir.discard(work)


def _refuse_taken(path: Path, output: Path) -> None:
    """`a` and `a.parquet` would take turns at one output, and a file that no run made stays. Raises
    `InputError`.
    """
    manifest = read_manifest(manifest_location(str(output)))
    if manifest is None:
        if output.is_file() and output.stat().st_size and not _made_by_a_run(output):
            what = f"{output.name} lies there already and is no output of batch-route"
            raise InputError(f"{what}; move it away, or rename one of the two")
        return
    with contextlib.suppress(KeyError, TypeError):
        names = {os.path.basename(file["path"]) for file in manifest["job"]["input"]["files"]} - {path.name}
        if other := next((name for name in names if (path.parent / name).exists()), None):
            raise InputError(f"{output.name} is already the output of {other}; rename one of the two")


def _made_by_a_run(output: Path) -> bool:
    try:
        found = guarded(ParquetSource.open, Location.of(output), what=output.name)
    except InputError:
        return False
    return WRITER in (found.schema.metadata or {})


def _is_of(job: dict[str, Any], stamp: Stamp | None) -> bool:
    """Whether a job, which need not be one of ours, has one file, of this size and time."""
    try:
        files = [(file["size"], file["modified_ns"]) for file in job["input"]["files"]]
    except (KeyError, TypeError):
        return False
    return stamp is not None and files == [(stamp.size, stamp.modified_ns)]


def _for_file(options: Options, path: Path, output: Path, stamp: Stamp | None) -> Options:
    """One file's own run; one that was begun is ended with the adapter that it was begun with, if that is
    still there.
    """
    options = dataclasses.replace(options, input=str(path), output=str(output))
    begun = job_in(work_dir_of(options))
    if begun and _is_of(begun, stamp):
        with contextlib.suppress(AdapterError):
            Registry().resolve(str(begun.get("adapter")))
            return dataclasses.replace(options, adapter=str(begun["adapter"]))
    return options
