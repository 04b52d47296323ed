"""JSON files, as everything in `train` writes them."""

from pathlib import Path
from typing import Any

from batch.contract.json_text import pretty_json


def write_json(path: Path, content: Any) -> None:
    """Indented for people; the same content gives the same bytes."""
    path.write_bytes(pretty_json(content))
