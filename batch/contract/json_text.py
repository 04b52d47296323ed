"""JSON as this project reads and writes it: whatever cannot be read is a `ValueError`, and a number that JSON
does not know (NaN, infinity) is never written.
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
    """For a file that people look at too. Raises `ValueError` where a number is not finite."""
    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def as_json(value: Any) -> Any:
    """`value` as it comes back from a file: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))
