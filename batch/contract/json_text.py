"""JSON as this project reads and writes it: whatever cannot be read is a `ValueError`, and so is writing a
number that JSON does not know (NaN, infinity).
"""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Raises `ValueError`, also for text nested so deeply that reading it would exhaust the stack."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def pretty_json(value: Any) -> bytes:
    """For a file that people look at too."""
    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def json_line(value: Any) -> str:
    """A line of a JSONL file."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def compact_json(value: Any) -> str:
    """Without spaces: the serialisation of answers."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def as_json(value: Any) -> Any:
    """`value` as it comes back from a file: tuples are lists, keys are strings."""
    return json.loads(compact_json(value))
