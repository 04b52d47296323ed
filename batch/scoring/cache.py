"""Answers that need no engine: those to texts that a run repeats and, with `--cache`, those of earlier
nights.

An entry's key is a keyed hash of adapter and text, so the file holds no request and an entry is found only
under the very fingerprint that it was made under. Its value carries a checksum: a damaged entry is ignored.
Error rows are never stored, nor is anything that depends on what else was in the batch. The file's header
says that it is such a store: another program's database is left as it is.
"""

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from batch.contract.json_text import compact_json, fits, parse_json
from batch.errors import InputError
from batch.scoring.lane import ScoredRow
from batch.storage.hashing import Int64s, text_hashes
from batch.storage.location import refused_or_failed

PATIENCE = 30.0  # seconds to wait for another run's write
EVICT = 10  # one entry in so many goes when the file is full
GIVEN_BACK = 2000  # pages in a row, of 4 KiB each: 0.2 s
PAGE = 4096  # bytes of one of the file's pages
MARK_AT = 10_000  # used entries, to mark them as used
CHECK_BYTES = 8
FILE = "answers.sqlite"
TABLE = "answers (key BLOB PRIMARY KEY, used INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID"
SQLITE = b"SQLite format 3\0"  # what every database begins with
OURS = b"b-rt"  # SQLite's `application_id`
HEAD = 105  # bytes of a database up to the number of its tables
NUMBER = int | float
ENTRY = (  # as `_entry` writes it
    {str: object},
    {str: NUMBER},
    [str],
    (None, {str: [NUMBER]}),
    [str],
    (None, {str: [object]}),
)


class AnswerStore:
    """One SQLite file. Build it with :meth:`open`; several runs may share it. Faults raise
    `sqlite3.Error`.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], max_bytes: int | None, only: Int64s | None
    ) -> None:
        # half for the entries, half for the log of writes that are not yet among them
        self._max_bytes = None if max_bytes is None else max(1, max_bytes // 2)
        self._path, self._only = path, only
        self._secret = hashlib.sha256(compact_json(dict(facts)).encode()).digest()
        self._now = int(time.time())
        self._seen: set[bytes] = set()  # keys found, not yet marked as used
        self._database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        try:
            self._database.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file
            if self._pragma("application_id") == 0:
                self._database.execute(f"PRAGMA application_id={int.from_bytes(OURS)}")
            self._database.execute("PRAGMA journal_mode=WAL")
            # with WAL: a power cut loses entries, never the file
            self._database.execute("PRAGMA synchronous=NORMAL")
            if self._max_bytes:
                self._database.execute(f"PRAGMA wal_autocheckpoint={max(1, self._max_bytes // 4 // PAGE)}")
                self._database.execute(f"PRAGMA journal_size_limit={self._max_bytes // 2}")
            self._database.execute(f"CREATE TABLE IF NOT EXISTS {TABLE}")
            made = self._database.execute("SELECT type, sql FROM sqlite_master").fetchall()
            if made != [("table", f"CREATE TABLE {TABLE}")]:
                raise sqlite3.DatabaseError("it holds something else than a run makes")
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
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            with open(file, "rb") as begun:
                head = begun.read(HEAD)
        except OSError as error:
            raise refused_or_failed(
                f"cannot keep answers in {folder}", error, "choose another --cache"
            ) from error
        if _is_of_others(head):
            raise InputError(f"{path} is another program's database; move it away, or choose another --cache")
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
            if check == _checksum(key, content) and (row := _read(content)):
                known[keys[key]] = row
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
        room = max(1, self._max_bytes // 4) if self._max_bytes else None
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
        # The file gives back what is free, not all at once: others wait meanwhile.
        for _ in range(min(GIVEN_BACK, self._pragma("freelist_count"))):
            self._database.execute("PRAGMA incremental_vacuum")  # one page: Python takes one step of it

    def _bytes(self) -> int:
        """Bytes of the file that hold entries; what was deleted is filled again before the file grows."""
        used = self._pragma("page_count") - self._pragma("freelist_count")
        return self._pragma("page_size") * used

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])


def _is_of_others(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a database that no run made: not so where another run
    has only begun it, nor of what is no database, which is a damaged one.
    """
    begun = head[18:20] == b"\1\1" and head[68:72] == b"\0\0\0\0" and head[103:105] == b"\0\0"
    return head.startswith(SQLITE) and head[68:72] != OURS and not begun


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


def _read(content: bytes) -> ScoredRow | None:
    """The row of an entry; None for what `_entry` did not write."""
    try:
        parts = parse_json(content)
        sound = isinstance(parts, list) and len(parts) in (3, len(ENTRY)) and all(map(fits, parts, ENTRY))
        return _row(*parts) if sound else None
    except (ValueError, TypeError):
        return None


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
    second = {name: (value, float(score)) for name, (value, score) in (seconds or {}).items()}
    return ScoredRow(read, scores, tuple(violations), None, parts or None, tuple(denied), second or None)


def _checksum(key: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECK_BYTES, key=key).digest()
