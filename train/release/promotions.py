"""Who became the champion, by which gates, instead of whom: a log in the registry, and the way back.

`promotions.jsonl` holds an object a line: `at`, `action` (promote or rollback), `from` and `to` (digests),
and of a promotion whether it was `forced` and what its `gates` said.
"""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.errors import AdapterError
from batch.storage.location import write_file
from train.release.gates import Gate

LOG = "promotions.jsonl"


def promote(bundle: Bundle, registry: Registry, passed: Sequence[Gate], force: bool = False) -> None:
    """Move `champion` to a bundle of the registry and log it. Raises `AdapterError` at a gate that is not
    passed.
    """
    failed = [gate.name for gate in passed if not gate.ok]
    if failed and not force:
        raise AdapterError(
            f"adapter {bundle.digest[:12]} does not pass: {', '.join(failed)}; train a better one, "
            "or use --force, which is recorded"
        )
    was = registry.aliases().get("champion")
    if was == bundle.digest:
        return
    gates = [dataclasses.asdict(gate) for gate in passed]
    _log(
        registry,
        {"action": "promote", "from": was, "to": bundle.digest, "forced": bool(failed), "gates": gates},
    )
    registry.set_alias("champion", bundle.digest)


def roll_back(registry: Registry) -> tuple[str, str]:
    """Give `champion` back to the adapter that it was taken from; returns the two digests. Again goes further
    back.
    """
    now = registry.aliases().get("champion")
    stack: list[tuple[str | None, str]] = []
    for entry in history(registry):
        if entry["action"] == "promote":
            stack.append((entry["from"], entry["to"]))
        elif stack:
            stack.pop()
    while stack and stack[-1][1] != now:  # a promotion that was cut off between the log and the alias
        stack.pop()
    before = stack[-1][0] if stack else None
    if not now or not before:
        raise AdapterError(
            f"nothing to roll back to: {registry.root / LOG} names no champion before this one"
        )
    Bundle.open(registry.resolve(before))  # it must still be there, and whole
    _log(registry, {"action": "rollback", "from": now, "to": before})
    registry.set_alias("champion", before)
    return now, before


def history(registry: Registry) -> list[dict[str, Any]]:
    """The log's entries, oldest first. Raises `AdapterError` where it is damaged."""
    path = registry.root / LOG
    try:
        return (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if path.exists()
            else []
        )
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read: {error}; correct or remove the line") from error


def _log(registry: Registry, entry: Mapping[str, Any]) -> None:
    """Before the alias moves: what the log does not know of cannot be rolled back."""
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lines = [json.dumps(each, ensure_ascii=False) for each in [*history(registry), {"at": at, **entry}]]
    write_file(registry.root / LOG, ("\n".join(lines) + "\n").encode())
