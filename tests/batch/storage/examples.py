"""Records of a run for tests, and what edits one. Loads no Arrow: a storm forks."""

import json
from pathlib import Path
from typing import Any

from batch.contract.json_text import pretty_json
from batch.storage.records import sealed

FACTS: dict[str, Any] = {  # of a job
    "version": "0.1.0",
    "input": {"files": [{"path": "/in.parquet", "size": 10}], "schema": {"id": "string"}},
    **dict.fromkeys(("ids", "adapter", "contract"), "0" * 64),
    "id_column": "id",
    "text_column": "request",
    "prefix": "",
    "limit": None,
    "engine": "vllm",
    "base": {"ref": "b"},
}
FILE = {"rows": 1, "ids": "i", "sha256": "", "bytes": 1}
RUN: dict[str, Any] = {
    "id": "r",
    "finished_at": "2026-11-26T00:00:00+00:00",
    "input": {"columns": [], "notes": []},
    "tally": {"rows": 1, "score_sum": 0.0}
    | {name: {} for name in ("errors", "values", "violations", "scores", "triage")},
    "thresholds": {},
    "resumed_rows": 0,
    "rows_per_second": None,
    "seconds": 1.5,
    "engine": {},
    "pace": {},
}


def manifest(parts: list[dict[str, Any]] | None = None, **content: Any) -> bytes:
    """Sealed; what is not given is an example's."""
    output = {**FILE, "columns": ["id"]} | ({"parts": [{**FILE, **part} for part in parts]} if parts else {})
    return pretty_json(sealed({"job": FACTS, "output": output, "run": RUN, "drift": None, **content}))


def edited(path: Path, *keys: str, value: Any = None, seal: bool = False) -> None:
    """Give what lies under `keys` in a record another value, and the record, if asked, a digest that fits."""
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(sealed(content) if seal else content))
