"""The folder of a job's unfinished work, and who may touch what in it.

    .NAME.work/            beside OUTPUT, or in --work-dir under OUTPUT's name and a hash of its path
      job.json             the job's fingerprint: facts that must not change between a run and its resumption
      plan.json            where several processes score the units: what it takes to publish them
      receipts/            which units are done (`receipts.py`)
      attempts/            how often a cluster's actors have tried a unit, and which engines are lost
      shards/              rows that are done: parts of whole units, and what is kept of a unit under way
      answers/             to texts that the input repeats
    .NAME.work-<hash>/     unfinished work of another job for the same OUTPUT, kept under its fingerprint
    .NAME.work.lock        held while the run lives, shared by processes that score units of one job
    .NAME.work.plan.lock   held by the shard that reads the whole of INPUT and writes the plan down

Tonight's job never waits for a person because of what another left: that is set aside, taken up again if its
own job comes back, and removed when a job of this OUTPUT is finished. Only files that a run made are ever
removed, and no symbolic link is followed.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from batch.contract.json_text import as_json, parse_json, pretty_json
from batch.errors import InputError, OutputLockedError
from batch.storage.location import Location, refused_or_failed, storage_error, write_file
from batch.storage.lock import Lock

JOB, PLAN = "job.json", "plan.json"
RECEIPTS, SHARDS, ANSWERS, ATTEMPTS = "receipts", "shards", "answers", "attempts"
MADE = {  # the names that a run gives to its files, by folder
    "": re.compile(rf"{re.escape(JOB)}|{re.escape(PLAN)}|\..*\.partial"),
    RECEIPTS: re.compile(r"\d{5,}\.json|\..*\.partial"),
    SHARDS: re.compile(r"\d{5,}(-\d{5,})?-[0-9a-f]{16}\.parquet|\..*\.partial"),
    ANSWERS: re.compile(r"answers\.sqlite.*"),
    ATTEMPTS: re.compile(r"\d{5,}-\d+|lost-[0-9a-f-]+|\..*\.partial"),
}
KEPT = 2  # other jobs' unfinished work for one output: the newest
PLANNING = 4 * 3600.0  # seconds for another shard to read the whole of INPUT once, before it writes the plan

Facts = dict[str, Any]


def work_dir(output: str, within: Path | None) -> Path:
    """The folder for unfinished work on `output`: beside it, hidden from a directory read as input, or in the
    folder `within`, which several outputs may share. For an output in a store, whose parts and receipts lie
    there, it is the user's cache.
    """
    location = Location.of(output)
    name = Path(location.path).name
    if within is None and location.local:
        return Path(location.path).with_name(f".{name}.work")
    within = within or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "batch-route")
    place = location.name if not location.local else os.path.realpath(location.path)
    short = os.fsencode(name)[:200].decode(errors="ignore")
    return within / f"{short}-{hashlib.sha256(place.encode()).hexdigest()[:12]}.work"


class WorkDir:
    """One job's folder, locked. Build it with :meth:`open`; use it as a context manager, or close it."""

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path = path
        self.other: Facts | None = None  # of the job whose unfinished work was set aside
        self._lock = lock

    @classmethod
    def open(cls, path: Path, facts: Facts, fresh: bool = False) -> Self:
        """Lock the folder and bring it to what an earlier run of the job with these `facts` (JSON values)
        left, or, with `fresh`, to nothing.

        Raises `OutputLockedError` if another run holds it, `InputError` where there can be no such folder.
        """
        with _working_in(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            work = cls(path, Lock.take(_lock_of(path), str(path)))
            try:
                work._take_up(as_json(facts), fresh)
            except BaseException:
                work.close()
                raise
        return work

    @classmethod
    def join(cls, path: Path) -> Self:
        """The folder as one of several that work in it at the same time, all on the job that it holds."""
        with _working_in(path):
            return cls(path, Lock.take(_lock_of(path), str(path), shared=True))

    @staticmethod
    def planning(path: Path) -> Lock:
        """The lock of the one shard that makes the plan; others wait for it. Raises as :meth:`open`."""
        with _working_in(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return Lock.take(_plan_lock_of(path), str(path), PLANNING)

    @property
    def shards(self) -> Path:
        return self.path / SHARDS

    @classmethod
    def discard(cls, path: Path) -> None:
        """Remove what a job left that is finished after all. Raises what :meth:`open` raises."""
        if cls.left(path):
            cls.open(path, job_in(path) or {}).finish()

    @staticmethod
    def left(path: Path) -> bool:
        """Whether anything of a job lies there."""
        return any(os.path.lexists(left) for left in (path, _lock_of(path), _plan_lock_of(path)))

    def finish(self) -> None:
        """Remove all unfinished work on this output, once its manifest is there. Raises `StorageError`."""
        try:
            for path in (self.path, *self._others()):
                _remove(path)
            Lock.clear(_plan_lock_of(self.path))
        except OSError as error:
            raise storage_error(str(self.path), error) from error
        finally:
            self.close()

    def leave(self, finished: bool = False) -> None:
        """Let go, as one of several. The last one removes the folder where the job is `finished`, or nothing
        is kept of a unit under way.
        """
        planning = _plan_lock_of(self.path)  # whoever holds it is about to come
        with self, contextlib.suppress(OSError, OutputLockedError), Lock.take(planning, "", patience=0):
            if self._lock.alone() and (finished or not any(self.shards.glob("[0-9]*"))):
                _remove(self.path)

    def close(self) -> None:
        """Let go of the lock; what is finished stays."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take_up(self, facts: Facts, fresh: bool) -> None:
        _own_folder(self.path)
        if fresh:
            for path in (self.path, *self._others()):
                _remove(path)
        elif (live := job_in(self.path)) != facts:
            if live is not None and any(
                file for folder in (RECEIPTS, SHARDS) for file in (self.path / folder).glob("[0-9]*")
            ):
                self.other = live
                _remove(self._aside(live))
                self.path.rename(self._aside(live))
            else:
                _remove(self.path)  # nothing was finished, or its job is not known any more
            if job_in(self._aside(facts)) == facts and not self.path.exists():
                self._aside(facts).rename(self.path)
            for path in self._others()[:-KEPT]:
                _remove(path)
        for name in MADE:
            _own_folder(self.path / name)
        if job_in(self.path) != facts:
            write_file(self.path / JOB, pretty_json(facts))
        for path in (*(self.path / name for name in MADE if name), self.path, self.path.parent):
            Location.of(path / "x").sync_folder()

    def _aside(self, facts: Facts) -> Path:
        return self.path.with_name(f"{self.path.name}-{fingerprint(facts)[:7]}")

    def _others(self) -> list[Path]:
        """Folders of other jobs, the newest last."""
        named = re.compile(re.escape(self.path.name) + "-[0-9a-f]{7}")
        found = [path for path in self.path.parent.iterdir() if named.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.lstat().st_mtime_ns)


def fingerprint(facts: Facts) -> str:
    """sha256 (hex) of a job's facts."""
    return hashlib.sha256(pretty_json(as_json(facts))).hexdigest()


def job_in(path: Path) -> Facts | None:
    """The facts of the unfinished job in a folder; None where there is none, or none that can be read."""
    try:
        facts = parse_json((path / JOB).read_bytes())
        fingerprint(facts)  # fails for what no run can have written
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


@contextlib.contextmanager
def _working_in(path: Path) -> Iterator[None]:
    """The system's word that `path` cannot be worked in, as an error of ours with its remedy."""
    try:
        yield
    except OSError as error:
        raise refused_or_failed(f"cannot work in {path}", error, "choose another --work-dir") from error


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _plan_lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.plan.lock")


def _own_folder(path: Path) -> None:
    """Make a folder that only this user may enter, or find it there."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a symbolic link or a file; move it away, or choose another --work-dir")
    if status.st_mode & stat.S_IWOTH and status.st_uid not in (0, os.geteuid()):
        why = "is another user's, and anybody may write in it"
        raise InputError(f"{path} {why}; move it away, or choose another --work-dir")


def _remove(path: Path) -> None:
    """Remove what a run made in a folder, and the folder if nothing else is in it. The job goes first:
    without it, the rest are leftovers.
    """
    if path.is_symlink() or not path.is_dir():
        return
    for name, made in MADE.items():
        folder = path / name
        if folder.is_symlink() or not folder.is_dir():
            continue
        for file in sorted(folder.iterdir()):
            if made.fullmatch(file.name) and not file.is_dir():
                file.unlink()
        if not name:
            Location.of(folder / "x").sync_folder()
    for name in sorted(MADE, reverse=True):
        with contextlib.suppress(OSError):  # holds somebody's files, or was not there
            (path / name).rmdir()


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """``path old → new`` for the first facts that differ."""
    before, after = dict(_flat(old)), dict(_flat(new))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    told = [f"{name} {_short(before.get(name))} → {_short(after.get(name))}" for name in names[:4]]
    return ", ".join(told) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, inner in items for leaf in _flat(inner, f"{path}.{key}" if path else str(key))]
    return [(path, value)]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 32 else f"{text[:16]}…{text[-8:]}"
