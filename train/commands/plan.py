"""`batch-train plan`: say what training an adapter would take. What trains one is not imported."""

from pathlib import Path

import click

from batch.reporting.console import PlainConsole
from train.commands.options import PATH
from train.config import Config
from train.fit.plan import make_plan, tables


@click.command()
@click.argument("config", type=PATH)
def plan(config: Path) -> None:
    """Print what CONFIG will train, without loading a model.

    Parameters, steps, tokens, memory. Downloads nothing.
    """
    recipe = Config.load(config)
    console = PlainConsole()
    for table in tables(make_plan(recipe), recipe):
        console.print(table)
