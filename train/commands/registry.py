"""`batch-train adapters`, `promote` and `rollback`: click only, imports inside."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("adapter")
@click.option(
    "--regression",
    type=PATH,
    help="Rows that must all be right.  [default: data/regression.jsonl where it fits the contract]",
)
@click.option(
    "--against",
    type=PATH,
    help="Rows on which it must not be worse than the champion.  [default: its own test split]",
)
@click.option(
    "--probes",
    type=PATH,
    help="Rows that probe for bias.  [default: data/probes.jsonl where it fits the contract]",
)
@click.option("--force", is_flag=True, help="Promote whatever the gates say; the log keeps that.")
def promote(
    adapter: str, regression: Path | None, against: Path | None, probes: Path | None, force: bool
) -> None:
    """Make ADAPTER the champion, which `batch-route` uses where no adapter is named, if it passes the gates.

    The regression set is all right, the doctor finds the adapter sound, it is not worse than the champion,
    and no label comes without the words that its rule wants. A bundle directory from elsewhere is taken into
    the registry first.
    """
    import shutil

    from batch.adapter.bundle import Bundle
    from batch.adapter.registry import Registry
    from train.release.gates import GateData, gates
    from train.release.promotions import promote as move

    registry = Registry()
    bundle = Bundle.open(registry.resolve(adapter))
    if not (registry.root / bundle.digest).exists():
        staging = registry.staging()
        shutil.copytree(bundle.path, staging, dirs_exist_ok=True)
        bundle = registry.add(staging)
    passed = gates(bundle.digest, registry, GateData(regression, against, probes))
    for gate in passed:
        click.echo(str(gate))
    move(bundle, registry, passed, force)
    click.echo(f"champion is {bundle.digest}")


@click.command()
def rollback() -> None:
    """Make the adapter the champion again that was it before the last promotion; once more goes one further
    back.
    """
    from batch.adapter.registry import Registry
    from train.release.promotions import roll_back

    was, now = roll_back(Registry())
    click.echo(f"champion is {now}, no longer {was}")


@click.command()
def adapters() -> None:
    """List the adapters there are."""
    import json

    from rich.console import Console
    from rich.table import Table

    from batch.adapter.registry import Registry

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
