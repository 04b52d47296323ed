"""`batch-train fit`: train an adapter."""

import functools
from pathlib import Path

import click

from batch.adapter.registry import Registry
from batch.imports import uncollected
from batch.reporting.console import PlainConsole
from train.commands.options import PATH, SHARE
from train.config import Config
from train.fit.inputs import prepare


@click.command()
@click.argument("config", type=PATH)
@click.option(
    "--target-error",
    metavar="F",
    type=SHARE,
    help="Share of errors allowed among the rows that need no person.  [default: the recipe's]",
)
def fit(config: Path, target_error: float | None) -> None:
    """Train the adapter that CONFIG describes.

    Ends with the doctor's checks; an interrupted run is resumed. The new bundle gets the alias `latest`, and
    `champion` if there is none yet and it passes all checks.
    """
    recipe = Config.load(config)
    if target_error:
        recipe = recipe.with_target_error(target_error)
    inputs = prepare(recipe)
    # What trains and checks takes ten seconds to import: what is refused, is refused before that.
    with uncollected():
        from train.doctor import sound
        from train.fit import qlora

    adapters = Registry()
    examine = functools.partial(sound, recipe.find(recipe.data.train), PlainConsole())
    trained = qlora.fit(inputs, adapters, PlainConsole(stderr=True), examine)
    names = ", ".join(alias for alias, digest in adapters.aliases().items() if digest == trained.digest)
    click.echo(f"{trained.path}  ({names})")
