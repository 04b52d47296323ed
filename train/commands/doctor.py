"""`batch-train doctor`: is what was trained what is served?"""

from pathlib import Path

import click

from batch.adapter.registry import Registry
from batch.completion import adapters
from batch.errors import AdapterError
from batch.reporting.console import PlainConsole
from train.commands.options import PATH, base_option, json_option
from train.doctor import as_json
from train.doctor import doctor as examine
from train.doctor.check import show
from train.files import write_json


@click.command()
@click.argument("adapter", shell_complete=adapters)
@click.option("--data", type=PATH, help="The training rows.  [default: those that its manifest names]")
@base_option
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Number format of the engine.  [default: that of a run]",
)
@json_option
def doctor(
    adapter: str, data: Path | None, base_model: str | None, dtype: str | None, json_path: Path | None
) -> None:
    """Check that ADAPTER is served as it was trained.

    Twelve checks on the path that serves, one per line; exit 2 if one fails. docs/doctor.md lists what each
    compares, and its limit.
    """
    folder = Registry().resolve(adapter)
    checks = examine(folder, data, base_model, dtype=dtype)
    if json_path:
        write_json(json_path, as_json(checks, folder.name))
    show(checks, PlainConsole())
    if not all(check.ok for check in checks):
        raise AdapterError(
            f"adapter {adapter} fails the doctor's checks; the lines marked FAIL say what to do"
        )
