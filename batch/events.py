"""What a run says while it goes on: events, written as JSON lines on stderr where `--log-json` asks for them.

An event is a name with facts: counts, seconds, digests, codes, paths. The text of a request is never one of
them.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import IO, Any

_log = logging.getLogger("batch_route")
_log.addHandler(logging.NullHandler())
_log.propagate = False  # a library that configures the root logger must not put foreign lines among ours
_log.setLevel(logging.INFO)


def emit(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Say that `event` happened. Nothing is written unless :func:`json_lines` listens."""
    _log.log(level, event, extra={"facts": facts})


class _JsonLine(logging.Formatter):
    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {
            "time": time,
            "level": record.levelname.lower(),
            "run": self._run,
            "event": record.getMessage(),
        }
        return json.dumps({**head, **getattr(record, "facts", {})}, default=str)


@contextlib.contextmanager
def json_lines(run: str, stream: IO[str] | None = None) -> Iterator[None]:
    """Write every event of the block to `stream` (stderr), one JSON object a line, each with the id of the
    `run`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLine(run))
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)
