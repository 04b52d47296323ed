"""From the command line's words to a session, and a session on a port of this machine."""

import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import DatasetError, InputError
from batch.storage.location import reason
from batch.storage.manifest import manifest_location, read_manifest
from batch.storage.schema import readable
from train.dataset import Row, load_rows, split_path
from train.decisions import Asked, Decision, parse, settled
from train.evaluation.from_scored import OutputTask, sources_of, task_by, text_column_of
from train.files import strict_json
from train.review.app import build_app
from train.review.session import Session
from train.tables import SUFFIXES


def task_of(scored: Path, contract: str | None, prefix: str = "") -> OutputTask:
    """The contract named, else that of the adapter that wrote `scored`, of several the first row's. Raises
    `InputError`, `ContractError`, `AdapterError`.
    """
    name, sources = prefix + "adapter", sources_of(scored)
    if name not in sources[0].schema.names:
        raise InputError(f"{scored}: has no column {name!r}; give an output of batch-route")
    batches = (batch for source in sources for batch in source.batches(columns=[name]))
    named = (str(value) for batch in batches for value in readable(batch.column(name)) if value is not None)
    task = task_by(next(named, None), Registry(), contract)
    if task is None:
        raise InputError(f"{scored}: its adapter is not in the registry; name its contract with --contract")
    return task


def columns_of(scored: Path, id_column: str, text_column: str | None) -> tuple[str, str]:
    """Of ids and texts; where no column is named, texts are in the run's."""
    return id_column, text_column_of(scored, text_column) or "request"


def seed_of(scored: Path) -> str:
    """The run's id, by which the audit's rows are drawn; the file's name where the output has no manifest."""
    manifest = read_manifest(manifest_location(str(scored))) or {}
    return str(manifest.get("run", {}).get("id") or scored.name)


def examples_of(task: OutputTask, named: Path | None) -> list[Row]:
    """Labelled rows to propose facts and texts from: those named, else the adapter's training rows if they
    are here.
    """
    if named:
        return load_rows(named, task.contract, evaluation=True, decisions=True)
    try:
        return load_rows(split_path(task.bundle, "train"), task.contract) if task.bundle else []
    except DatasetError:
        return []


def ids_in(path: Path) -> frozenset[tuple[str, str | None]]:
    """The ids in a JSONL file, each with its request where that is there. Raises `InputError`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        rows = [strict_json(line) for line in lines if line.strip()]
        ids = frozenset((str(row["id"]), row.get("request")) for row in rows)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}; check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is not a file of JSON objects with an id ({type(error).__name__}); correct it"
        ) from error
    if not ids:
        raise InputError(f"{path}: holds no ids; give what `agreement --out` writes")
    return ids


def reviewed(paths: Sequence[Path], contract: Contract) -> list[tuple[Row, str]]:
    """The rows that reviewers labelled in these files together, each with the last reviewer's name. Raises
    `DatasetError`, where reviewers differ as well.
    """
    found: dict[Asked, tuple[Row, str]] = {}
    fields = [field.name for field in contract.scored_fields]
    for path in paths:
        rows = {row.line: row for row in load_rows(path, contract, decisions=True)}
        decisions = decisions_in(path)
        labelled, _ = settled(decisions, fields)
        for decision in (each for each in decisions if each.line in labelled):
            row = rows[decision.line]
            earlier = found.get(row.asked)
            if earlier and any(earlier[0].answer[name] != row.answer[name] for name in fields):
                raise DatasetError(
                    f"{row.where}: {earlier[1]} and {decision.reviewer} gave request {row.id!r} "
                    "different labels; "
                    "settle it with batch-train agreement and review --only"
                )
            found[row.asked] = (row, decision.reviewer)
    return list(found.values())


def decisions_in(path: Path) -> list[Decision]:
    """Every decision in the file, undone ones included. Raises `DatasetError`."""
    table = path.suffix.lower() in SUFFIXES  # which holds rows, but no history
    lines = [] if table else path.read_text(encoding="utf-8-sig").split("\n")
    every = [parse(text, str(path), number) for number, text in enumerate(lines, start=1) if text.strip()]
    if table or None in every:
        raise DatasetError(
            f"{path}: is not a file of reviewers' decisions; give what batch-train review wrote"
        )
    return [each for each in every if each]


def serve(session: Session, port: int, ready: Callable[[str], Any]) -> None:
    """Serve the page on 127.0.0.1 until SIGINT or SIGTERM; `ready` is told its address. Raises
    `InputError`.
    """
    secret = secrets.token_urlsafe(16)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as error:
        raise InputError(f"port {port} cannot be used: {error.strerror}; name another one") from error
    app = build_app(session, secret)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, server_header=False))
    ready(f"http://127.0.0.1:{listener.getsockname()[1]}/{secret}/")
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn raises the signal again once it has closed what was open
    finally:
        listener.close()
