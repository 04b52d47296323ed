"""Reviewers' decisions: an append-only JSONL file, one line a decision, which is a dataset as well.

A line that labels is a dataset row with five more keys: `decision`, `reviewer`, `reviewed_at`, `suggested`
(the model's answer) and `adapter`. Nothing is ever changed or taken out: of one reviewer's decisions on one
request the latest stands, and `undo` takes the one before it back. A request is its id and its text: the ids
of another night may begin anew. Several threads and processes may write to one file: each line is one write
under a lock, synced before the reviewer sees the next request.
"""

import fcntl
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from batch.contract.json_text import json_line, parse_json
from batch.errors import DatasetError, StorageError
from train.files import strict_json

KINDS = ("label", "unsure", "skip", "undo")
# What a decision's line has beside a dataset row's own keys; training ignores them.
KEYS = frozenset({"decision", "reviewer", "reviewed_at", "suggested", "adapter", "why", "note", "audit"})

Asked: TypeAlias = tuple[str, str]  # id and text of a request


class Decision(NamedTuple):
    asked: Asked  # the text is empty in older lines that label nothing
    kind: str  # one of KINDS
    reviewer: str
    line: int  # in its file, from 1
    content: Mapping[str, Any]


def parse(text: str, where: str, line: int) -> Decision | None:
    """The decision in a line of JSON; None for a row that is not one. Raises `DatasetError`."""
    try:
        content = strict_json(text.removeprefix("\ufeff"))  # an editor's byte order mark
    except ValueError as error:
        raise DatasetError(f"{where}:{line}: is not JSON: {error}; write one JSON object a line") from error
    if not isinstance(content, dict) or "decision" not in content:
        return None
    kind, name, reviewer = (content.get(key) for key in ("decision", "id", "reviewer"))
    if kind not in KINDS or not isinstance(name, str) or not isinstance(reviewer, str):
        raise DatasetError(
            f"{where}:{line}: a decision needs an id, a reviewer and one of {', '.join(KINDS)}; "
            "correct the line"
        )
    return Decision((name, str(content.get("request", ""))), kind, reviewer, line, content)


def standing(decisions: Iterable[Decision]) -> dict[tuple[Asked, str], Decision]:
    """By request and reviewer the decision that stands, in the order in which it was taken."""
    found: dict[tuple[Asked, str], list[Decision]] = defaultdict(list)
    latest_text: dict[tuple[str, str], str] = {}  # by id and reviewer
    for each in decisions:
        name, text = each.asked
        text = text or latest_text.get((name, each.reviewer), "")
        latest_text[name, each.reviewer] = text
        history = found[(name, text), each.reviewer]
        if each.kind != "undo":
            history.append(each)
        elif history:
            history.pop()
    latest = {key: history[-1] for key, history in found.items() if history}
    return dict(sorted(latest.items(), key=lambda entry: entry[1].line))


def settled(decisions: Sequence[Decision], fields: Sequence[str]) -> tuple[set[int], dict[int, str]]:
    """Lines that are a dataset's rows, and what is wrong with lines that cannot be one.

    Where all reviewers of a request gave the same values to `fields`, the last of their lines is the row;
    where they differ, neither is.
    """
    groups: dict[Asked, list[Decision]] = defaultdict(list)
    for each in standing(decisions).values():
        if each.kind == "label":
            groups[each.asked].append(each)
    rows: set[int] = set()
    wrong: dict[int, str] = {}
    for group in groups.values():
        last = group[-1]
        if all(each.content.get(name) == last.content.get(name) for each in group for name in fields):
            rows.add(last.line)
        else:
            names = " and ".join(sorted({each.reviewer for each in group}))
            wrong[last.line] = (
                f"{names} gave request {last.asked[0]!r} different labels; let one of them decide again"
            )
    return rows, wrong


class DecisionLog:
    """The file, open for adding to. `decisions` holds what it says, others' additions included after
    `refresh`.
    """

    def __init__(self, path: Path) -> None:
        """Create the file where there is none. Raises `StorageError`, and `DatasetError` for
        foreign content.
        """
        self._path = path
        self._read = 0  # bytes
        self._known = False  # to be a file of decisions
        self._lines: Counter[tuple[Asked, str]] = Counter()  # by request and reviewer
        self._turn = threading.Lock()  # the file's lock does not part threads: they share its descriptor
        self.decisions: list[Decision] = []
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise StorageError(
                f"cannot write {path}: {error.strerror}; name another file with --labels"
            ) from error
        try:
            with self._locked():
                self._read_to_the_end()
            self._known = True
        except (DatasetError, OSError):
            self.close()
            raise

    def refresh(self) -> None:
        """Read what was added since, whole lines only."""
        with self._turn:
            self._read_lines()

    def _read_lines(self) -> None:
        data = os.pread(self._file, os.fstat(self._file).st_size - self._read, self._read)
        whole = data[: data.rfind(b"\n") + 1]
        first = len(self.decisions) + 1
        for number, line in enumerate(whole.split(b"\n")[:-1], start=first):
            decision = self._decision(line, number)
            self.decisions.append(decision)
            self._lines[decision.asked, decision.reviewer] += 1
        self._read += len(whole)

    def add(self, content: Mapping[str, Any], known: int) -> bool:
        """Write one decision durably. False, and nothing is written, where this reviewer's decisions on this
        request are no longer the `known` number: another tab or process was faster.

        Raises `StorageError`.
        """
        line = json_line(content).encode()
        asked = content["id"], content["request"]
        try:
            with self._turn, self._locked():
                self._read_to_the_end()
                if self.count(asked, content["reviewer"]) != known:
                    return False
                before = os.fstat(self._file).st_size
                try:
                    if os.write(self._file, line) != len(line):
                        raise OSError(None, "the disk is full")
                    os.fsync(self._file)
                except OSError:
                    os.ftruncate(self._file, before)
                    raise
                self._read_lines()
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}; make room and save again"
            ) from error
        return True

    def count(self, asked: Asked, reviewer: str) -> int:
        """How many lines this reviewer has written on this request."""
        return self._lines[asked, reviewer]

    def close(self) -> None:
        os.close(self._file)

    def _read_to_the_end(self) -> None:
        """Read what was added since, and mend a last line without its end. Raises `DatasetError`, and changes
        nothing, for foreign content.
        """
        self._read_lines()
        rest = os.pread(self._file, os.fstat(self._file).st_size - self._read, self._read)
        if not rest:
            return
        if _is_json(rest):  # an editor left out the line end
            self._decision(rest, len(self.decisions) + 1)
            os.write(self._file, b"\n")
            self._read_lines()
        elif self.decisions or (self._known and rest[:2] in (b"{", b'{"')):
            # what a crash cut off was never answered for: no reviewer saw it saved
            os.ftruncate(self._file, self._read)
        else:  # may be anyone's
            raise self._foreign(1)

    def _decision(self, line: bytes, number: int) -> Decision:
        decision = parse(line.decode(errors="replace"), str(self._path), number)
        if decision is None:
            raise self._foreign(number)
        return decision

    def _foreign(self, number: int) -> DatasetError:
        return DatasetError(
            f"{self._path}:{number}: is not a reviewer's decision; name a file of its own with --labels"
        )

    def _locked(self) -> "_Lock":
        return _Lock(self._file)


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line.decode(errors="replace"))
    except ValueError:
        return False
    return True


class _Lock:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
