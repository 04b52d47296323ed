"""What is done: a work directory that holds the job's fingerprint, its finished shards and a lock.

    WORK_DIR/lock                          held while the run lives; the kernel frees it when the run dies
    WORK_DIR/job.json                      the facts that must not change between a run and its resumption
    WORK_DIR/shards/00000000-<sha>.parquet rows in input order, each shard named by the sha256 of its bytes
    WORK_DIR/answers/                      answers to texts that the input repeats

A shard counts if its bytes still have the digest in its name and all before it count. What does not is done
again.
"""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from batch.errors import InputError
from batch.storage.location import Location, storage_error, write_file
from batch.storage.lock import Lock
from batch.storage.manifest import finished
from batch.storage.output import encode_shard

JOB = "job.json"
RETRY_OF = "retry_of"  # fact of a job that retries errors: sha256 of the output that they are in


class Ledger:
    """The finished part of a run. Build it with :meth:`open`; use it as a context manager, or close it."""

    def __init__(self, work_dir: Path, lock: Lock) -> None:
        self.work_dir = work_dir
        self.shards: list[Path] = []
        self.done_rows = 0
        self._lock = lock

    @classmethod
    def open(
        cls, work_dir: Path, facts: dict[str, Any], fresh: bool = False, output: str | None = None
    ) -> "Ledger":
        """Lock `work_dir` and pick up what an earlier run of the same job finished there.

        Raises `OutputLockedError` if another run holds it, `InputError` if its unfinished job has other
        `facts` (JSON values), unless `fresh`. Where that job is known from the manifest of `output` to be
        finished after all, its leftovers are cleared away.
        """
        work_dir = Path(work_dir)
        try:
            ledger = cls(work_dir, Lock.take(work_dir / "lock", str(work_dir)))
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"cannot work in {work_dir}: {error.strerror}; choose another --work-dir"
            ) from error
        except OSError as error:
            raise storage_error(str(work_dir), error) from error
        try:
            ledger._resume(json.loads(json.dumps(facts)), fresh, output)
        except OSError as error:
            ledger.close()
            raise storage_error(str(work_dir), error) from error
        except BaseException:
            ledger.close()
            raise
        return ledger

    def commit(self, table: pa.Table) -> None:
        """Make the next rows durable: after this returns they are never computed again. Raises
        `StorageError`.
        """
        data = encode_shard(table)
        path = self._folder / f"{len(self.shards):08d}-{_digest(data)}.parquet"
        write_file(path, data)
        self.shards.append(path)
        self.done_rows += table.num_rows

    def finish(self) -> None:
        """Remove the work directory, once the manifest is there. Raises `StorageError`."""
        try:
            self._clear()
            shutil.rmtree(self.work_dir)
        except OSError as error:
            raise storage_error(str(self.work_dir), error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the lock; what is finished stays."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def answers(self) -> Path:
        """Folder for answers that the run asks for again; it goes with the job."""
        return self.work_dir / "answers"

    @property
    def _folder(self) -> Path:
        return self.work_dir / "shards"

    @property
    def _job(self) -> Path:
        return self.work_dir / JOB

    def _resume(self, facts: dict[str, Any], fresh: bool, output: str | None) -> None:
        live = None if fresh else live_facts(self.work_dir)
        if live is not None and live != facts:
            # A retry (--retry-errors) of a finished output keeps nothing that the output lacks: it may be
            # forgotten.
            job = {name: value for name, value in live.items() if name != RETRY_OF}
            if output is None or finished(output, job) is None:
                what = changes(live, facts)
                raise InputError(
                    f"the unfinished run in {self.work_dir} was another: {what}; forget it with --fresh"
                )
            live = None
        if live != facts:
            self._clear()
            write_file(self._job, json.dumps(facts, ensure_ascii=False, indent=2).encode())
        self._folder.mkdir(exist_ok=True)
        Location.of(self._folder).sync_folder()
        self._verify()

    def _verify(self) -> None:
        for path in self._folder.glob(".*.partial"):
            path.unlink()  # of a commit that was cut short
        found = sorted(self._folder.iterdir())
        for path in found:
            data = path.read_bytes()
            if path.name != f"{len(self.shards):08d}-{_digest(data)}.parquet":
                break
            self.done_rows += pq.read_metadata(pa.BufferReader(data)).num_rows
            self.shards.append(path)
        for path in found[len(self.shards) :]:
            path.unlink()

    def _clear(self) -> None:
        """Forget the job first: without job.json, shards are leftovers."""
        self._job.unlink(missing_ok=True)
        Location.of(self._job).sync_folder()
        for folder in (self._folder, self.answers):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)
        self.shards, self.done_rows = [], 0


def live_facts(work_dir: Path) -> dict[str, Any] | None:
    """The facts of the unfinished job in `work_dir`, None where there is none. Raises `InputError` where they
    are damaged.
    """
    try:
        facts: dict[str, Any] = json.loads((work_dir / JOB).read_bytes())
        return facts
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{work_dir / JOB} is damaged; forget the unfinished run with --fresh") from error


def _digest(data: bytes | pa.Buffer) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


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
