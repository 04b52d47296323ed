"""`batch-train improve`: what people decided, trained on."""

from pathlib import Path

import click

from batch.reporting.console import PlainConsole
from train.commands.options import PATH
from train.config import Config
from train.review.improve import extend, fit_and_compare


@click.command()
@click.argument("config", type=PATH)
@click.argument("labels", type=PATH, nargs=-1, required=True)
@click.option(
    "--beside",
    type=PATH,
    multiple=True,
    help="Rows for measuring: reviewed rows like them are left out. May be given more than once.",
)
@click.option(
    "--out", type=PATH, default=Path("reviewed"), show_default=True, help="Folder of the new training rows."
)
@click.option("--promote/--no-promote", default=True, help="Make it the champion if it passes the gates.")
def improve(
    config: Path, labels: tuple[Path, ...], beside: tuple[Path, ...], out: Path, promote: bool
) -> None:
    """Fit CONFIG again with the reviewed rows.

    The new adapter is compared with the champion, and promoted if it passes the gates (see `promote`).
    """
    extended = extend(Config.load(config), labels, out, beside)
    click.echo(
        f"{extended.added} reviewed rows added to {extended.config.data.train}, in place of "
        f"{extended.replaced} training rows; left out: {extended.measuring} like a row that measures, "
        f"{extended.known} known already"
    )
    fit_and_compare(extended.config, PlainConsole(), beside, promote)
