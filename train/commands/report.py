"""`batch-train report`: one HTML file on an adapter."""

from pathlib import Path

import click

from batch.adapter.registry import Registry
from batch.completion import adapters
from batch.storage.places import refuse_others
from train.commands.options import NAME, PATH, outlet
from train.report.html import write_adapter_report

WRITTEN = b"<!doctype html>", b"batch-train report</title>"  # how a report begins, and what is in its head


@click.command()
@click.argument("adapter", shell_complete=adapters)
@click.argument("datasets", metavar="[DATASET]...", nargs=-1, type=PATH)
@outlet("--out", default=Path("report.html"), show_default=True, help="The HTML file to write.")
@click.option("--against", metavar="ADAPTER", type=NAME, help="Another adapter (or `base`) to compare with.")
@click.option(
    "--data",
    type=PATH,
    help="The training rows, for the doctor.  [default: those that its manifest names]",
)
def report(
    adapter: str, datasets: tuple[Path, ...], out: Path, against: str | None, data: Path | None
) -> None:
    """Write an HTML report on ADAPTER.

    Doctor, metrics with intervals, confusion, calibration, losses, recipe and data. ADAPTER is evaluated on
    each DATASET; without one on its test split, and on regression.jsonl, natural.jsonl and probes.jsonl in
    its contract's folder, as far as they exist.
    """
    refuse_others("--out", out, *WRITTEN)
    write_adapter_report(adapter, Registry(), out, datasets, against, data)
    click.echo(str(out))
