"""What a run writes down of itself in JSON: manifest, receipts, plan. Each has a digest of its own content
and a shape, so its reader sees whether it is as a run wrote it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from batch.contract.json_text import canonical_json, fits, parse_json

DIGEST = "digest"  # key of a record: sha256 (hex) of the rest of it, as canonical JSON
NUMBER = int | float
COUNTS = {str: int}
TALLY = {  # see `batch.reporting.tally.Tally`
    "rows": int,
    "errors": COUNTS,
    "values": {str: COUNTS},
    "violations": COUNTS,
    "score_sum": NUMBER,
    "scores": {str: COUNTS},
    "triage": COUNTS,
}
JOB = {  # what is read of a job's facts
    "version": str,
    "input": {"files": [{"path": str}], "schema": {str: str}},
    "ids": str,
    "id_column": str,
    "text_column": str,
    "prefix": str,
    "limit": (int, None),
    "adapter": str,
    "contract": str,
    "base": {"ref": str},
    "engine": str,
}


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` as a record, with its digest."""
    rest = {name: value for name, value in content.items() if name != DIGEST}
    return {**rest, DIGEST: _digest(rest)}


def unsealed(text: str | bytes, shape: Any) -> dict[str, Any]:
    """The content of a record. Raises `ValueError` where it is not as it was written, or of another shape."""
    content = parse_json(text)
    if not isinstance(content, dict) or content.pop(DIGEST, None) != _digest(content):
        raise ValueError("its digest is not that of its content")
    if not fits(content, shape):
        raise ValueError("its content is not of this version's shape")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()
