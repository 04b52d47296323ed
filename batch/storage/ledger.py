"""What is done: finished shards in the folder of a job's unfinished work.

    shards/00000000-<sha>.parquet    rows in input order, each shard named by the sha256 of its bytes
    answers/                         answers to texts that the input repeats

A shard counts if its bytes still have the digest in its name and all before it count. What does not is done
again.
"""

import hashlib
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from batch.storage.location import storage_error, write_file
from batch.storage.output import encode_shard
from batch.storage.workdir import ANSWERS, MADE, SHARDS, WorkDir

RETRY_OF = "retry_of"  # fact of a job that retries errors: sha256 of the output that they are in


class Ledger:
    """The finished part of a run. Build it with :meth:`open`; use it as a context manager, or close it."""

    def __init__(self, work: WorkDir) -> None:
        self.shards: list[Path] = []
        self.done_rows = 0
        self.work = work

    @classmethod
    def open(cls, work_dir: Path, facts: dict[str, Any], fresh: bool = False) -> Self:
        """Lock `work_dir` and pick up what an earlier run of the same job, by its `facts`, finished there.

        Raises what :meth:`WorkDir.open` raises.
        """
        ledger = cls(WorkDir.open(Path(work_dir), facts, fresh))
        try:
            ledger._verify()
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
        self.work.finish()

    def close(self) -> None:
        """Let go of the lock; what is finished stays."""
        self.work.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def answers(self) -> Path:
        """Folder for answers that the run asks for again; it goes with the job."""
        return self.work.path / ANSWERS

    @property
    def _folder(self) -> Path:
        return self.work.path / SHARDS

    def _verify(self) -> None:
        for path in self._folder.glob(".*.partial"):
            path.unlink()  # of a commit that was cut short
        found = sorted(path for path in self._folder.iterdir() if MADE[SHARDS].fullmatch(path.name))
        for path in found:
            data = path.read_bytes()
            if path.name != f"{len(self.shards):08d}-{_digest(data)}.parquet":
                break
            self.done_rows += pq.read_metadata(pa.BufferReader(data)).num_rows
            self.shards.append(path)
        for path in found[len(self.shards) :]:
            path.unlink()


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
