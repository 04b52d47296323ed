"""Commands of `batch-train` that look at a trained bundle: click only, imports inside."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from train.doctor import Check

PATH = click.Path(path_type=Path)
SHARE = click.FloatRange(1e-4, 0.5)


def check_folder(path: Path | None) -> None:
    """What is written at the end of minutes of work must have a place at their start."""
    from batch.errors import InputError

    if path and not path.absolute().parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} in; make it first")


def print_checks(checks: "Sequence[Check]") -> bool:
    """A line each; returns whether all are green."""
    for check in checks:
        click.echo(str(check))
    return all(check.ok for check in checks)


@click.command()
@click.argument("adapter")
@click.option("--data", type=PATH, help="The training rows.  [default: where the bundle's manifest has them]")
@click.option(
    "--base-model", metavar="REF", help="The base model's folder or hub id.  [default: the bundle's]"
)
@click.option("--json", "json_path", type=PATH, help="Write the checks here.")
def doctor(adapter: str, data: Path | None, base_model: str | None, json_path: Path | None) -> None:
    """Check on the path that serves it that ADAPTER is served as it was trained; exit 2 where it is not."""
    from batch.adapter.registry import Registry
    from batch.errors import AdapterError
    from train.doctor import doctor, write_json

    check_folder(json_path)
    folder = Registry().resolve(adapter)
    checks = doctor(folder, data, base_model)
    if json_path:
        write_json(checks, folder.name, json_path)
    if not print_checks(checks):
        raise AdapterError(f"adapter {adapter} is not sound; the lines marked FAIL say what to do")


@click.command()
@click.argument("adapter")
@click.argument("dataset", type=PATH)
@click.option(
    "--target-error",
    metavar="F",
    type=SHARE,
    default=0.02,
    show_default=True,
    help="Errors allowed without a person.",
)
def calibrate(adapter: str, dataset: Path, target_error: float) -> None:
    """Fit ADAPTER's scores and its threshold for `triage` on labelled requests that it was not trained on.

    The calibrated copy is a bundle of its own and gets the alias `latest`.
    """
    from batch.adapter.bundle import Bundle
    from batch.adapter.registry import Registry
    from train.fit.calibrated import calibrate_bundle, summary

    registry = Registry()
    bundle, content = calibrate_bundle(
        Bundle.open(registry.resolve(adapter)), dataset, target_error, registry
    )
    click.echo("\n".join([*summary(content), str(bundle.path)]))


@click.command()
@click.argument("adapter")
@click.argument("datasets", metavar="[DATASET]...", nargs=-1, type=PATH)
@click.option(
    "--out", type=PATH, default=Path("report.html"), show_default=True, help="The HTML file to write."
)
@click.option("--against", metavar="ADAPTER", help="Another adapter (or `base`) to compare with.")
@click.option(
    "--data",
    type=PATH,
    help="The training rows, for the doctor.  [default: where the bundle's manifest has them]",
)
def report(
    adapter: str, datasets: tuple[Path, ...], out: Path, against: str | None, data: Path | None
) -> None:
    """Write one HTML file on ADAPTER: doctor, metrics with intervals, confusion, calibration, losses, recipe,
    data.

    Judged on each DATASET; without one on the adapter's test split and the fixed sets beside its contract.
    """
    from batch.adapter.registry import Registry
    from train.report.html import write_report

    check_folder(out)
    write_report(adapter, Registry(), out, datasets, against, data)
    click.echo(str(out))
