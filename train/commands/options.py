"""What the commands share: kinds of arguments, and the place of what they write, seen to before any work."""

from pathlib import Path

import click

from batch.cli_errors import Number
from batch.storage.places import check_writable

PATH = click.Path(path_type=Path)
SHARE = Number(1e-4, 0.5)


def writable(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: minutes of work must not end without a place."""
    if path:
        check_writable(path, parameter.opts[0])
    return path


json_option = click.option(
    "--json", "json_path", type=PATH, callback=writable, help="Write everything here as JSON."
)
