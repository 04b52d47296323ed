"""`batch-train contract`: a contract to begin with."""

import shlex
from pathlib import Path

import click

from batch.cli_errors import ErrorGroup, printable
from batch.errors import InputError, one_line
from train.commands.options import PATH, text_option
from train.labelling.start import start

NAMED = 6  # of the rows that are left out


@click.group(cls=ErrorGroup)
def contract() -> None:
    """Make a contract from labelled data."""


@contract.command()
@click.argument("labelled", type=PATH)
@text_option
@click.option(
    "--label-column",
    "label_columns",
    metavar="NAME",
    multiple=True,
    required=True,
    help="Column of labels; may be given more than once.",
)
@click.option("--out", type=PATH, help="The folder to make.  [default: LABELLED's name, without its suffix]")
def init(labelled: Path, text_column: str, label_columns: tuple[str, ...], out: Path | None) -> None:
    """Make a contract, a recipe and splits of LABELLED, a CSV, TSV, JSONL or Parquet file.

    Each --label-column becomes a field with the labels that it holds. Eight rows of ten are for training, one
    for validation and one for the test; nearly equal rows stay together. No row is set aside for calibration.
    """
    folder = out or Path(labelled.stem)
    if folder.exists():
        raise InputError(f"{folder} exists; name a new folder with --out")
    if printable(str(folder)) != str(folder):
        raise InputError(f"{printable(str(folder))} is not valid UTF-8; name a new folder with --out")
    made = start(labelled, text_column, label_columns)
    made.write(folder)
    for why, rows in made.left_out.items():
        some = ", ".join(map(str, rows[:NAMED])) + ", …" * (len(rows) > NAMED)
        click.echo(f"{len(rows)} rows {why} are left out: row {some}")
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in made.splits.items())
    click.echo(one_line(f"{folder}: contract.toml, recipe.toml; {counts} rows"))
    recipe = shlex.quote(one_line(str(folder / "recipe.toml")))
    click.echo(f"Say in the contract what each label means, then: batch-train fit {recipe}")
