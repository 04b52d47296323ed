"""`batch-train adapters`: the registry as a table."""

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from batch.adapter.bundle import Bundle
from batch.adapter.files import read_json
from batch.adapter.registry import Registry
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
    bundles = [bundle for bundle in found.values() if isinstance(bundle, Bundle)]
    lines = [
        _facts(bundle, [alias for alias, digest in aliases.items() if digest == bundle.digest])
        for bundle in sorted(bundles, key=lambda bundle: str(bundle.manifest.get("created_at", "")))
    ]
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
    metrics = read_json(bundle.path / "metrics.json", "an adapter bundle")
    return {
        "digest": bundle.digest,
        "aliases": aliases,
        "contract": bundle.contract.name,
        "base": bundle.base["ref"],
        "rank": bundle.rank,
        "rows": bundle.manifest.get("data", {}).get("train", {}).get("rows"),
        "validation_loss": (metrics.get("best") or {}).get("validation_loss"),
        "threshold": bundle.calibration.threshold,
        "created": bundle.manifest.get("created_at"),
    }


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
