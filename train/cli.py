"""`batch-train`: click only. Whatever loads torch is imported inside the command that needs it."""

import functools
from pathlib import Path

import click

from batch.console import ErrorGroup
from train import cli_bundle, cli_judge, cli_label, cli_registry


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train adapter bundles from labelled requests, and judge them."""


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--target-error", metavar="F", type=cli_bundle.SHARE, help="Errors allowed without a person.  [default: the recipe's]")
def fit(config: Path, target_error: float | None) -> None:
    """Train the adapter that CONFIG describes, and let the doctor look at it; an interrupted run is resumed.

    The new bundle gets the alias `latest`, and `champion` where there is none yet and the doctor finds it sound.
    """
    from train.config import Config

    recipe = Config.load(config)  # before torch is loaded: a misspelt key is known at once
    if target_error:
        recipe = recipe.with_target_error(target_error)
    from rich.console import Console

    from batch.bundle import Registry
    from train.doctor import sound
    from train.qlora import fit as train

    registry = Registry()
    bundle = train(recipe, registry, Console(stderr=True), functools.partial(sound, recipe.find(recipe.data.train), Console()))
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


for command in (
    *(cli_bundle.doctor, cli_bundle.calibrate, cli_bundle.report),
    *(cli_judge.evaluate, cli_judge.diagnose, cli_judge.loop),
    *(cli_label.lint, cli_label.candidates),
    *(cli_registry.promote, cli_registry.rollback, cli_registry.adapters),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
