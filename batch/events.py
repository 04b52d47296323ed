"""What a run says while it goes on: events, written as JSON lines on stderr where `--log-json` asks for them.

An event is a name with facts: counts, seconds, digests, codes, paths. The text of a request is never one of
them.
"""

import contextlib
import io
import json
import secrets
import sys
from datetime import UTC, datetime
from typing import IO, Any, Protocol


class Emit(Protocol):
    def __call__(self, event: str, *, level: str = "info", **facts: Any) -> None:
        """Say that `event` happened."""


class JsonText(io.TextIOBase):
    """A stream for a program that writes lines: each becomes an event `message`, or `error` and `warning` by
    what it begins with.
    """

    def __init__(self, run: str, stream: IO[str]) -> None:
        self.stream = stream
        self._emit, self._begun = JsonLines(run, stream), ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            word, colon, rest = line.partition(": ")
            level = {"Error": "error", "Warning": "warning"}.get(word if colon else "", "info")
            event = "message" if level == "info" else level
            self._emit(event, level=level, message=line.strip() if level == "info" else rest)
        return len(text)

    def writable(self) -> bool:
        return True


def log_stderr_as_json() -> None:
    """From now on, what this process writes to `sys.stderr` is JSON lines."""
    sys.stderr = JsonText(secrets.token_hex(8), sys.stderr)


def nobody(event: str, *, level: str = "info", **facts: Any) -> None:
    """Where nobody listens."""


class JsonLines:
    """Writes events to `stream` (stderr), one JSON object a line, each with the id of the `run`."""

    def __init__(self, run: str, stream: IO[str] | None = None) -> None:
        self._run, stream = run, stream or sys.stderr
        self._stream = stream.stream if isinstance(stream, JsonText) else stream

    def __call__(self, event: str, *, level: str = "info", **facts: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        told = {"time": time, "level": level, "run": self._run, "event": event, **facts}
        with contextlib.suppress(OSError, ValueError):  # a closed pipe must not end the run
            self._stream.write(json.dumps(told, default=str, allow_nan=False) + "\n")
            self._stream.flush()
