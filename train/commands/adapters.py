"""`batch-train adapters`: the registry as a table."""

import json

import click
from rich.console import Console
from rich.table import Table

from batch.adapter.registry import Registry


@click.command()
def adapters() -> None:
    """List the adapters there are."""
    registry = Registry()
    aliases = registry.aliases()
    table = Table(title=f"{registry.root}/", title_justify="left")
    for column in ("digest", "aliases", "contract", "base", "rank", "rows", "loss", "created"):
        table.add_column(column, no_wrap=column in ("digest", "loss"))
    bundles = sorted(registry.list(), key=lambda bundle: str(bundle.manifest.get("created_at", "")))
    for bundle in bundles:
        best = json.loads((bundle.path / "metrics.json").read_text(encoding="utf-8")).get("best", {})
        table.add_row(
            bundle.digest[:12],
            ", ".join(alias for alias, digest in aliases.items() if digest == bundle.digest),
            bundle.contract.name,
            bundle.base["ref"],
            str(bundle.rank),
            str(bundle.manifest.get("data", {}).get("train", {}).get("rows", "")),
            f"{best['validation_loss']:.4f}" if "validation_loss" in best else "",
            str(bundle.manifest.get("created_at", ""))[:10],
        )
    Console(highlight=False).print(table)
    if not bundles:
        click.echo("none yet; run `make train`")
