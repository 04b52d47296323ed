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


def canonical_json(value: Any) -> bytes:
    """The same bytes for equal values, whatever the order of their keys."""
    try:
        return json.dumps(as_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def fits(value: Any, shape: Any) -> bool:
    """Whether a JSON value has a shape: a type; None; ``[shape]``, a list of such; ``{str: shape}``, an
    object of such under any keys; ``{"key": shape}``, one with at least these keys, of which ``"key?"`` may
    be missing; a tuple, any of several.
    """
    match shape:
        case None:
            return value is None
        case tuple():
            return any(fits(value, each) for each in shape)
        case [inner]:
            return isinstance(value, list) and all(fits(each, inner) for each in value)
        case dict() if str in shape:
            return isinstance(value, dict) and all(fits(each, shape[str]) for each in value.values())
        case dict():
            return isinstance(value, dict) and all(
                fits(value[name], inner) if (name := key.removesuffix("?")) in value else name != key
                for key, inner in shape.items()
            )
    return isinstance(value, shape)
