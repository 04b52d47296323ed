"""Answers that need no engine: those to texts that a run repeats and, with `--cache`, those of earlier
nights.

An entry's key is a keyed hash of adapter and text, so the file holds no request and an entry is found only
under the very fingerprint that it was made under. Its value carries a checksum: a damaged entry is ignored.
Error rows are never stored, nor is anything that depends on what else was in the batch.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from batch.contract.json_text import compact_json
from batch.scoring.lane import ScoredRow
from batch.storage.hashing import Int64s, text_hashes
from batch.storage.location import refused_or_failed

PATIENCE = 30.0  # seconds to wait for another run's write
EVICT = 10  # one entry in so many goes when the file is full
PAGE = 4096  # bytes of one of the file's pages
MARK_AT = 10_000  # used entries, to mark them as used
CHECK_BYTES = 8
FILE = "answers.sqlite"
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, used INTEGER NOT NULL, value BLOB NOT "
    "NULL) WITHOUT ROWID"
)


class AnswerStore:
    """One SQLite file. Build it with :meth:`open`; several runs may share it. Faults raise
    `sqlite3.Error`.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], max_bytes: int | None, only: Int64s | None
    ) -> None:
        # half for the entries, half for the log of writes that are not yet among them
        self._max_bytes = max_bytes and max_bytes // 2
        self._path, self._only = path, only
        self._secret = hashlib.sha256(compact_json(dict(facts)).encode()).digest()
        self._now = int(time.time())
        self._seen: set[bytes] = set()  # keys found, not yet marked as used
        self._database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        try:
            self._database.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file
            self._database.execute("PRAGMA journal_mode=WAL")
            # with WAL: a power cut loses entries, never the file
            self._database.execute("PRAGMA synchronous=NORMAL")
            if self._max_bytes:
                self._database.execute(f"PRAGMA wal_autocheckpoint={max(1, self._max_bytes // 4 // PAGE)}")
                self._database.execute(f"PRAGMA journal_size_limit={self._max_bytes // 2}")
            self._database.execute(SCHEMA)
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def open(
        cls, folder: Path, facts: Mapping[str, Any], max_bytes: int | None = None, only: Int64s | None = None
    ) -> Self:
        """The store in `folder`, for answers made under `facts` (JSON values: whatever an answer depends on).

        `max_bytes` bounds the files: the entries that were not used for longest go first. `only` limits it to
        texts whose :func:`text_hashes` are among these, sorted. Raises `InputError`, `StorageError` where
        there can be no such file.
        """
        path = folder / FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise refused_or_failed(
                f"cannot keep answers in {folder}", error, "choose another --cache"
            ) from error
        return cls(path, facts, max_bytes, only)

    def recall(self, adapter: str, texts: Sequence[str]) -> dict[str, ScoredRow]:
        """The texts whose answers are known."""
        keys = {self._key(adapter, text): text for text in self._kept(texts)}
        if not keys:
            return {}
        marks = ",".join("?" * len(keys))
        entries = self._database.execute(
            f"SELECT key, value FROM answers WHERE key IN ({marks})", list(keys)
        ).fetchall()
        known = {}
        for key, value in entries:
            if not isinstance(value, bytes):
                continue
            check, content = value[:CHECK_BYTES], value[CHECK_BYTES:]
            if check == _checksum(key, content):
                known[keys[key]] = _row(*json.loads(content))
                if self._max_bytes is not None:
                    self._seen.add(key)
        if len(self._seen) > MARK_AT:
            self._write([])
        return known

    def remember(self, adapter: str, rows: Mapping[str, ScoredRow]) -> None:
        """Keep the rows that are not errors, by text."""
        entries = []
        for text in self._kept(list(rows)):
            key, row = self._key(adapter, text), rows[text]
            if row.error_code is not None:
                continue
            content = compact_json(_entry(row)).encode()
            entries.append((key, self._now, _checksum(key, content) + content))
        if entries:
            self._write(entries)

    def close(self) -> None:
        with contextlib.closing(self._database):
            self._write([])

    def abandon(self) -> None:
        """Close it, whatever it has not yet written."""
        self._database.close()

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
        room = self._max_bytes // 4 if self._max_bytes else None
        for chunk in _chunks(entries, room):
            with self._transaction():
                self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", chunk)
                if self._max_bytes:
                    self._evict(self._max_bytes - self._max_bytes // 4)
        with self._transaction():
            self._database.executemany(
                "UPDATE answers SET used = ? WHERE key = ?", ((self._now, key) for key in seen)
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _evict(self, limit: int) -> None:
        while self._bytes() > limit:
            (count,) = self._database.execute("SELECT count(*) FROM answers").fetchone()
            if not count:
                break
            oldest = "SELECT key FROM answers ORDER BY used LIMIT ?"
            self._database.execute(f"DELETE FROM answers WHERE key IN ({oldest})", (count // EVICT + 1,))
        self._database.execute("PRAGMA incremental_vacuum").fetchall()  # the file gives back what is free

    def _bytes(self) -> int:
        """Bytes of the file that hold entries; what was deleted is filled again before the file grows."""
        names = ("page_size", "page_count", "freelist_count")
        size, pages, free = (self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        return int(size * (pages - free))


def _chunks(
    entries: Sequence[tuple[bytes, int, bytes]], room: int | None
) -> Iterator[Sequence[tuple[bytes, int, bytes]]]:
    """The entries in runs of about `room` bytes, each in a transaction of its own."""
    start = held = 0
    for index, (_, _, value) in enumerate(entries):
        if room and held and held + len(value) > room:
            yield entries[start:index]
            start, held = index, 0
        held += len(value)
    if entries[start:]:
        yield entries[start:]


def _entry(row: ScoredRow) -> list[Any]:
    rare = [row.label_scores, row.denied, row.seconds]
    return [row.answer, row.scores, row.violations, *(rare if any(rare) else [])]


def _row(
    answer: dict[str, Any],
    scores: dict[str, float],
    violations: list[str],
    label_scores: dict[str, list[float]] | None = None,
    denied: Sequence[str] = (),
    seconds: dict[str, list[Any]] | None = None,
) -> ScoredRow:
    """JSON has lists where a row has tuples."""
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in answer.items()}
    parts = {name: tuple(each) for name, each in (label_scores or {}).items()}
    second = {name: (value, score) for name, (value, score) in (seconds or {}).items()}
    return ScoredRow(read, scores, tuple(violations), None, parts or None, tuple(denied), second or None)


def _checksum(key: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECK_BYTES, key=key).digest()
