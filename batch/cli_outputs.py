"""The commands that read what a run has finished: `verify` and `show`."""

import contextlib

import click

from batch.cli_errors import ErrorCommand
from batch.errors import one_line


@click.command(cls=ErrorCommand)
@click.argument("output")
@click.argument("input", required=False)
def verify(output: str, input: str | None) -> None:
    """Read a finished OUTPUT back and verify it; with INPUT also row by row against the input."""
    from batch.verify import verify

    rows = verify(output, input)
    with contextlib.suppress(OSError):  # the exit code is the verdict
        click.echo(f"{one_line(output)}: {rows} rows, whole and as its manifest says")
        if input:
            click.echo(f"row for row those of {one_line(input)}")


@click.command(cls=ErrorCommand)
@click.argument("output")
@click.option(
    "-n", "count", metavar="N", type=click.IntRange(1), default=3, show_default=True, help="Rows at most."
)
def show(output: str, count: int) -> None:
    """Print a few rows of a finished OUTPUT."""
    from rich.table import Table

    from batch.reporting.console import PlainConsole
    from batch.show import show

    for row in show(output, count):
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column()
        for name, value in row.items():
            table.add_row(name, value)
        PlainConsole().print(table, "")
