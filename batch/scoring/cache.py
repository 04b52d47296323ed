"""Answers that need no engine: those to texts that a run repeats and, with `--cache`, those of earlier
nights.

An entry's key is a keyed hash of adapter and text, so the file holds no request and an entry is found only
under the very fingerprint that it was made under. Its value carries a checksum: a damaged entry is no entry.
Error rows are never stored, nor is anything that depends on what else was in the batch.
"""

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from batch.contract.fields import compact_json
from batch.errors import InputError, StorageError
from batch.scoring.lane import ScoredRow
from batch.scoring.router import Known
from batch.storage.hashing import Int64s, text_hashes

PATIENCE = 30.0  # seconds to wait for another run's write
EVICT = 10  # one entry in so many goes when the file is full
MARK_AT = 10_000  # used entries, to mark them as used
CHECK_BYTES = 8
INCIDENTAL = {"threads", "max_num_seqs"}  # facts of an engine that no answer depends on
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, used INTEGER NOT NULL, value BLOB NOT "
    "NULL) WITHOUT ROWID"
)


class AnswerStore:
    """One SQLite file. Build it with :meth:`open`; several runs may share it."""

    def __init__(
        self, path: Path, facts: Mapping[str, Any], max_bytes: int | None, only: Int64s | None
    ) -> None:
        self._path, self._max_bytes, self._only = path, max_bytes, only
        self._secret = hashlib.sha256(compact_json(dict(facts)).encode()).digest()
        self._now = int(time.time())
        self._seen: set[bytes] = set()  # keys found, not yet marked as used
        self._database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        # with WAL: a power cut loses entries, never the file
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute(SCHEMA)

    @classmethod
    def open(
        cls, folder: Path, facts: Mapping[str, Any], max_bytes: int | None = None, only: Int64s | None = None
    ) -> Self:
        """The store in `folder`, for answers made under `facts` (JSON values: whatever an answer depends on).

        `max_bytes` bounds the file: the entries that were not used for longest go first. `only` limits it to
        texts whose :func:`text_hashes` are among these, sorted. Raises `InputError`, `StorageError`.
        """
        path = folder / "answers.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(path, facts, max_bytes, only)
        except OSError as error:
            raise InputError(
                f"cannot keep answers in {folder}: {error.strerror}; choose another --cache"
            ) from error
        except sqlite3.Error as error:
            raise _failure(path, error) from error

    def recall(self, adapter: str, texts: Sequence[str]) -> dict[str, ScoredRow]:
        """The texts whose answers are known. Raises `StorageError`."""
        keys = {self._key(adapter, text): text for text in self._kept(texts)}
        if not keys:
            return {}
        marks = ",".join("?" * len(keys))
        with _translated(self._path):
            entries = self._database.execute(
                f"SELECT key, value FROM answers WHERE key IN ({marks})", list(keys)
            ).fetchall()
        known = {}
        for key, value in entries:
            check, content = value[:CHECK_BYTES], value[CHECK_BYTES:]
            if check == _checksum(key, content):
                answer, scores, violations = json.loads(content)
                known[keys[key]] = ScoredRow(answer, scores, tuple(violations))
                if self._max_bytes is not None:
                    self._seen.add(key)
        if len(self._seen) > MARK_AT:
            self._write([])
        return known

    def remember(self, adapter: str, rows: Mapping[str, ScoredRow]) -> None:
        """Keep the rows that are no errors, by text. Raises `StorageError`."""
        entries = []
        for text in self._kept(list(rows)):
            key, row = self._key(adapter, text), rows[text]
            if row.error_code is not None:
                continue
            content = compact_json([row.answer, row.scores, row.violations]).encode()
            entries.append((key, self._now, _checksum(key, content) + content))
        if entries:
            self._write(entries)

    def close(self) -> None:
        with contextlib.closing(self._database), _translated(self._path):
            self._write([])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _kept(self, texts: Sequence[str]) -> Sequence[str]:
        if self._only is None:
            return texts
        if not len(self._only) or not texts:
            return []
        hashes = text_hashes([text.encode() for text in texts])
        places = np.searchsorted(self._only, hashes).clip(max=len(self._only) - 1)
        return [texts[index] for index in np.flatnonzero(self._only[places] == hashes)]

    def _key(self, adapter: str, text: str) -> bytes:
        return hashlib.blake2b(f"{adapter}\0{text}".encode(), digest_size=16, key=self._secret).digest()

    def _write(self, entries: Sequence[tuple[bytes, int, bytes]]) -> None:
        seen, self._seen = self._seen, set()
        with _translated(self._path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", entries)
                self._database.executemany(
                    "UPDATE answers SET used = ? WHERE key = ?", ((self._now, key) for key in seen)
                )
                if self._max_bytes is not None and self._bytes() > self._max_bytes:
                    self._evict(self._max_bytes)
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _evict(self, limit: int) -> None:
        while self._bytes() > limit:
            (count,) = self._database.execute("SELECT count(*) FROM answers").fetchone()
            if not count:
                return
            oldest = "SELECT key FROM answers ORDER BY used LIMIT ?"
            self._database.execute(f"DELETE FROM answers WHERE key IN ({oldest})", (count // EVICT + 1,))

    def _bytes(self) -> int:
        """Bytes of the file that hold entries; what was deleted is filled again before the file grows."""
        names = ("page_size", "page_count", "freelist_count")
        size, pages, free = (self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        return int(size * (pages - free))


@contextlib.contextmanager
def known_answers(
    facts: Mapping[str, Any], within: Path, repeated: Int64s, across: Path | None, max_bytes: int
) -> Iterator[Known]:
    """What a run need not ask its engine: texts `repeated` in it, kept in `within`, and those of runs that
    share `across`.

    `facts` is all that an answer depends on beside its text and its adapter's bundle, which holds contract
    and tokenizer.
    """
    served = {name: value for name, value in facts.items() if name not in INCIDENTAL}
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(AnswerStore.open(within, served, only=repeated))
        earlier = stack.enter_context(AnswerStore.open(across, served, max_bytes)) if across else None
        yield Known(run, earlier)


def _checksum(key: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECK_BYTES, key=key).digest()


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: sqlite3.Error) -> InputError | StorageError:
    if "full" in str(error):
        return StorageError(f"{path}: no space left; free some space, then run again to resume")
    if isinstance(error, sqlite3.OperationalError):
        return StorageError(f"{path}: {error}; correct that, then run again to resume")
    return InputError(f"{path} is no store of answers: {error}; remove it")
