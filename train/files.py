"""JSON on disk, as everything in `train` writes it."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Indented for people; the same content gives the same bytes."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def json_line(content: Any) -> str:
    """A line of a JSONL file."""
    return json.dumps(content, ensure_ascii=False) + "\n"
