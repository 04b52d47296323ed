"""Who became the champion, by which gates, instead of whom: a log in the registry, and the way back.

`promotions.jsonl` holds an object a line: `at`, `action` (promote or rollback), `from` and `to` (digests),
and of a promotion whether it was `forced` and what its `gates` said.
"""

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.json_text import json_line, parse_json
from batch.errors import AdapterError, StorageError
from batch.storage.location import write_file
from train.release.gates import Gate

LOG = "promotions.jsonl"


def promote(
    bundle: Bundle, registry: Registry, passed: Sequence[Gate], beaten: str | None, force: bool = False
) -> None:
    """Move `champion` to a bundle of the registry and log it. `beaten` is the champion's digest from before
    the gates were `passed`: they say nothing of another one. Raises `AdapterError` at a gate that is not
    passed, `StorageError` where the champion has changed since.
    """
    failed = [gate.name for gate in passed if not gate.ok]
    if failed and not force:
        raise AdapterError(
            f"adapter {bundle.digest[:12]} does not pass: {', '.join(failed)}; train a better one, "
            "or use --force, which is recorded"
        )
    gates = [dataclasses.asdict(gate) for gate in passed]
    with registry.locked():
        was = registry.aliases().get("champion")
        if was == bundle.digest:
            return
        if was != beaten:
            raise StorageError(
                f"the champion changed while adapter {bundle.digest[:12]} was compared with the one before; "
                "run again to compare with the new one"
            )
        told = {"from": was, "to": bundle.digest, "forced": bool(failed), "gates": gates}
        _log(registry, {"action": "promote", **told})
        registry.set_alias("champion", bundle.digest)


def roll_back(registry: Registry, check: Callable[[Bundle], object] | None = None) -> tuple[str, str]:
    """Give `champion` back to the adapter that it was taken from; returns the two digests. Again goes further
    back. What `check` raises about that adapter leaves the champion where it is.
    """
    with registry.locked():
        now = registry.aliases().get("champion")
        stack: list[tuple[str | None, str]] = []
        for entry in _that_took_effect(history(registry), now):
            if entry["action"] == "promote":
                stack.append((entry["from"], entry["to"]))
            elif stack:
                stack.pop()
        while stack and stack[-1][1] != now:  # the alias was moved by other means
            stack.pop()
        before = stack[-1][0] if stack else None
        if not now or not before:
            raise AdapterError(
                f"nothing to roll back to: {registry.root / LOG} names no champion before this one; "
                "promote the adapter that is to serve"
            )
        bundle = Bundle.open(registry.resolve(before))  # it must still be there, and whole
        if check:
            check(bundle)
        _log(registry, {"action": "rollback", "from": now, "to": before})
        registry.set_alias("champion", before)
    return now, before


def _that_took_effect(entries: Sequence[dict[str, Any]], now: str | None) -> list[dict[str, Any]]:
    """Without those that were cut off between the log and the alias: what followed still saw `from`."""
    if not entries:
        return []
    seen_after = [entry["from"] for entry in entries[1:]] + [now]
    return [
        entry
        for entry, after in zip(entries, seen_after, strict=True)
        if after != entry["from"] or entry["from"] == entry["to"]
    ]


def history(registry: Registry) -> list[dict[str, Any]]:
    """The log's entries, oldest first. Raises `AdapterError` where it is damaged."""
    path = registry.root / LOG
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read: {error}; correct it") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
            whole = {"action", "from", "to"} <= set(entry)
        except (ValueError, TypeError):
            whole = False
        if not whole:
            raise AdapterError(f"{path}:{number}: is not a promotion; correct or remove the line")
        entries.append(entry)
    return entries


def _log(registry: Registry, entry: Mapping[str, Any]) -> None:
    """Before the alias moves: what the log does not know of cannot be rolled back."""
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = "".join(map(json_line, [*history(registry), {"at": at, **entry}]))
    write_file(registry.root / LOG, text.encode())
