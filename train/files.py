"""JSON, as everything in `train` writes it, and as it reads what people write."""

import json
from pathlib import Path
from typing import Any

from batch.contract.json_text import pretty_json


def write_json(path: Path, content: Any) -> None:
    """Indented for people; the same content gives the same bytes."""
    path.write_bytes(pretty_json(content))


def strict_json(text: str) -> Any:
    """The value that `text` is. Raises `ValueError`, also where an object has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"key {key!r} is duplicated")
        content[key] = value
    return content
