"""`batch-train`: click only. Whatever loads torch is imported inside the command that needs it."""

import functools
from pathlib import Path

import click

from batch.cli_errors import ErrorGroup
from train.commands import bundle, judge, label, registry, review


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train adapter bundles from labelled requests, and judge them."""


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--target-error",
    metavar="F",
    type=bundle.SHARE,
    help="Errors allowed without a person.  [default: the recipe's]",
)
def fit(config: Path, target_error: float | None) -> None:
    """Train the adapter that CONFIG describes, and let the doctor look at it; an interrupted run is resumed.

    The new bundle gets the alias `latest`, and `champion` where there is none yet and the doctor finds it
    sound.
    """
    from train.config import Config

    recipe = Config.load(config)  # before torch is loaded: a misspelt key is known at once
    if target_error:
        recipe = recipe.with_target_error(target_error)
    from rich.console import Console

    from batch.adapter.registry import Registry
    from train.doctor import sound
    from train.fit.qlora import fit as train

    adapters = Registry()
    trained = train(
        recipe,
        adapters,
        Console(stderr=True),
        functools.partial(sound, recipe.find(recipe.data.train), Console()),
    )
    names = ", ".join(alias for alias, digest in adapters.aliases().items() if digest == trained.digest)
    click.echo(f"{trained.path}  ({names})")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
def plan(config: Path) -> None:
    """Print what CONFIG will train: parameters, steps, tokens, memory. Downloads nothing."""
    from train.config import Config

    recipe = Config.load(config)
    from rich.console import Console

    from train.fit.plan import make_plan, tables

    console = Console(highlight=False)
    for table in tables(make_plan(recipe), recipe):
        console.print(table)


for command in (
    *(bundle.doctor, bundle.calibrate, bundle.report),
    *(judge.evaluate, judge.diagnose, judge.loop),
    *(label.lint, label.candidates),
    *(registry.promote, registry.rollback, registry.adapters),
    *(review.review, review.agreement, review.apply_reviews, review.audit, review.improve),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
