"""`batch-train`: click only. Whatever loads torch is imported inside the command that needs it."""

from pathlib import Path

import click

from batch.console import ErrorGroup


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train adapter bundles from labelled requests, and judge them."""


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
def fit(config: Path) -> None:
    """Train the adapter that CONFIG describes; an interrupted run is resumed.

    The new bundle gets the alias `latest`, and `champion` where there is none yet.
    """
    from train.config import Config

    recipe = Config.load(config)  # before torch is loaded: a misspelt key is known at once
    from rich.console import Console

    from batch.bundle import Registry
    from train.qlora import fit as train

    registry = Registry()
    bundle = train(recipe, registry, Console(stderr=True))
    names = ", ".join(alias for alias, digest in registry.aliases().items() if digest == bundle.digest)
    click.echo(f"{bundle.path}  ({names})")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
def plan(config: Path) -> None:
    """Print what CONFIG will train: parameters, steps, tokens, memory. Downloads nothing."""
    from train.config import Config

    recipe = Config.load(config)
    from rich.console import Console

    from train.plan import make_plan, tables

    console = Console(highlight=False)
    for table in tables(make_plan(recipe), recipe):
        console.print(table)


@main.command("eval")
@click.argument("adapters", metavar="ADAPTER[,ADAPTER...]")
@click.argument("datasets", metavar="DATASET...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures and every miss here.")
@click.option("--contract", help="For `base`: the contract. [default: the champion's, else data/contract.toml]")
@click.option("--base-model", help="The base model. [default: the adapter's; for `base` the champion's, else data/mini-base]")
def evaluate(adapters: str, datasets: tuple[Path, ...], json_path: Path | None, contract: str | None, base_model: str | None) -> None:
    """Judge adapters on labelled requests, through the path that serves them.

    ADAPTER is a bundle directory, a digest, an alias, or `base` for the base model without an adapter.
    """
    from rich.console import Console

    from batch.bundle import Registry
    from batch.errors import InputError
    from train.evaluate import candidate, serve, show, write_json

    if json_path and not json_path.absolute().parent.is_dir():
        raise InputError(f"no folder {json_path.parent} to write {json_path.name} in; make it first")
    registry = Registry()
    names = [name.strip() for name in adapters.split(",") if name.strip()]
    subjects = [candidate(name, registry, contract, base_model) for name in names]
    results = serve(subjects, datasets)
    show(results, Console(highlight=False))
    if json_path:
        write_json(results, json_path)


@main.command()
@click.argument("adapter")
def promote(adapter: str) -> None:
    """Make ADAPTER the champion, which `batch-route` uses where no adapter is named."""
    import shutil

    from batch.bundle import Bundle, Registry

    registry = Registry()
    bundle = Bundle.open(registry.resolve(adapter))
    if not (registry.root / bundle.digest).exists():  # a bundle from elsewhere is taken in first
        staging = registry.staging()
        shutil.copytree(bundle.path, staging, dirs_exist_ok=True)
        bundle = registry.add(staging)
    registry.set_alias("champion", bundle.digest)
    click.echo(f"champion is {bundle.digest}")


@main.command()
def adapters() -> None:
    """List the adapters there are."""
    import json

    from rich.console import Console
    from rich.table import Table

    from batch.bundle import Registry

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


if __name__ == "__main__":
    main()
