"""`batch-train adapters`: the registry as a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from batch.adapter.bundle import MANIFEST, Bundle
from batch.adapter.files import read_json
from batch.adapter.registry import Registry
from batch.errors import AdapterError
from batch.reporting.console import PlainConsole
from train.commands.options import json_option
from train.files import write_json

SHOWN = ("digest", "aliases", "contract", "base", "rows", "created")  # as wide as a terminal; --json has more
DIGITS = 12  # of a digest
MOST_COLUMNS = 10_000  # of a line in a pipe


@click.command()
@json_option
def adapters(json_path: Path | None) -> None:
    """List the adapters."""
    registry = Registry()
    aliases = registry.aliases()
    found = registry.survey()
    bundles = {name: bundle for name, bundle in found.items() if isinstance(bundle, Bundle)}
    lines = []
    for name, bundle in sorted(bundles.items(), key=lambda each: str(each[1].manifest.get("created_at", ""))):
        named = [alias for alias, digest in aliases.items() if digest == bundle.digest]
        try:
            lines.append(_facts(bundle, named))
        except AdapterError as damage:
            found[name] = damage
    if json_path:
        write_json(json_path, lines)
    if lines:
        _print(lines)
    for digest, error in found.items():
        if not isinstance(error, Bundle):
            click.echo(f"Warning: {digest[:DIGITS]} is damaged and left out: {error}", err=True)
    if not found:
        click.echo(f"none in {registry.root}/ yet; run `make train`")


def _facts(bundle: Bundle, aliases: list[str]) -> dict[str, Any]:
    """A bundle's line. Raises `AdapterError` for one whose tables are none."""
    metrics = read_json(bundle.path / "metrics.json", "an adapter bundle")
    data = _table(bundle.manifest.get("data"), f"{bundle.path}: {MANIFEST}: data")
    train = _table(data.get("train"), f"{bundle.path}: {MANIFEST}: data.train")
    best = _table(metrics.get("best"), f"{bundle.path}: metrics.json: best")
    return {
        "digest": bundle.digest,
        "aliases": aliases,
        "contract": bundle.contract.name,
        "base": bundle.base["ref"],
        "rank": bundle.rank,
        "rows": train.get("rows"),
        "validation_loss": best.get("validation_loss"),
        "threshold": bundle.calibration.threshold,
        "created": bundle.manifest.get("created_at"),
    }


def _table(value: Any, where: str) -> Mapping[str, Any]:
    """`value`, or an empty table where it is left out. Raises `AdapterError`."""
    if value is not None and not isinstance(value, Mapping):
        raise AdapterError(f"{where} is not a table; copy the bundle again")
    return value or {}


def _print(lines: list[dict[str, Any]]) -> None:
    """On a terminal words wrap; in a pipe each adapter is one line, however long."""
    console = PlainConsole()
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in SHOWN:
        table.add_column(
            name, no_wrap=not console.is_terminal or name in ("digest", "created"), overflow="fold"
        )
    for line in lines:
        short = {"digest": line["digest"][:DIGITS], "created": str(line["created"] or "")[:10]}
        cells = {**line, **short, "aliases": ", ".join(line["aliases"])}
        table.add_row(*("" if cells[name] is None else str(cells[name]) for name in SHOWN))
    if not console.is_terminal:
        unbounded = console.options.update(max_width=MOST_COLUMNS)
        console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)
