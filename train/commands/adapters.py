"""`batch-train adapters`: the registry as a table."""

import click
from rich.table import Table

from batch.adapter.bundle import Bundle
from batch.adapter.files import read_json
from batch.adapter.registry import Registry
from batch.reporting.console import PlainConsole


@click.command()
def adapters() -> None:
    """List the adapters."""
    registry = Registry()
    aliases = registry.aliases()
    table = Table(title=f"{registry.root}/", title_justify="left")
    for column in ("digest", "aliases", "contract", "base", "rank", "rows", "loss", "created"):
        table.add_column(column, no_wrap=column in ("digest", "loss"))
    found = registry.survey()
    bundles = [bundle for bundle in found.values() if isinstance(bundle, Bundle)]
    for bundle in sorted(bundles, key=lambda bundle: str(bundle.manifest.get("created_at", ""))):
        metrics = read_json(bundle.path / "metrics.json", "an adapter bundle")
        best = metrics.get("best") or {}
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
    PlainConsole().print(table)
    for digest, error in found.items():
        if not isinstance(error, Bundle):
            click.echo(f"Warning: {digest[:12]} is damaged and left out: {error}", err=True)
    if not found:
        click.echo("none yet; run `make train`")
