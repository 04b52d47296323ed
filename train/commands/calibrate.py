"""`batch-train calibrate`: scores that mean what they say."""

import functools
from pathlib import Path

import click

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.completion import adapters
from train.commands.options import PATH, SHARE
from train.fit.calibrated import calibrate_bundle, summary


@click.command()
@click.argument("adapter", shell_complete=adapters)
@click.argument("dataset", type=PATH)
@click.option(
    "--target-error",
    metavar="F",
    type=SHARE,
    default=0.02,
    show_default=True,
    help="Share of errors allowed among the rows that need no person.",
)
def calibrate(adapter: str, dataset: Path, target_error: float) -> None:
    """Calibrate ADAPTER's scores on labelled requests.

    DATASET holds at least 200 requests that ADAPTER was not trained on; they also set the threshold for
    `triage`. The calibrated copy is a separate bundle and gets the alias `latest`.
    """
    registry = Registry()
    chosen = Bundle.open(registry.resolve(adapter))
    warn = functools.partial(click.echo, err=True)
    bundle, content = calibrate_bundle(chosen, dataset, target_error, registry, warn)
    click.echo("\n".join([*summary(content), str(bundle.path)]))
