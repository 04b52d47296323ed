"""What the commands share: kinds of arguments, and the place of what they write, seen to before any work."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from batch.adapter.bundle import MANIFEST
from batch.adapter.registry import Registry
from batch.cli_errors import FILE, Name, Number
from batch.cli_errors import PATH as PATH  # the commands take all kinds from here
from batch.storage.location import Location
from batch.storage.places import check_writable, refuse_inputs, refuse_inside

NAME = Name()
SHARE = Number(1e-4, 0.5)
P = ParamSpec("P")
R = TypeVar("R")


def writable(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: minutes of work must not end without a place."""
    if path:
        check_writable(path, parameter.opts[0])
    return path


def outlet(*names: str, **settings: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """An option that names a file to write. Refused before any work is one that cannot be written, that is a
    file which another argument or option of the command names, or that lies among the adapters: `InputError`.
    """
    option = click.option(*names, type=FILE, callback=writable, **settings)

    def decorate(act: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(act)
        def apart(*args: P.args, **kwargs: P.kwargs) -> R:
            _refuse_inputs(click.get_current_context())
            return act(*args, **kwargs)

        return option(apart)

    return decorate


def _refuse_inputs(context: click.Context) -> None:
    outlets = [each for each in context.command.params if each.callback is writable]
    others = [context.params[each.name] for each in context.command.params if each not in outlets]
    there = [path for value in others for path in _paths(value)]
    inputs = [Location.of(path) for path in there if os.path.isfile(path)]
    bundles = {f"the adapter {path}": path for path in there if os.path.isfile(os.path.join(path, MANIFEST))}
    for each in outlets:
        if path := context.params[each.name]:
            refuse_inputs(str(path), inputs, each.opts[0])
            refuse_inside({each.opts[0]: path}, {"the registry": Registry().root, **bundles})


def _paths(value: Any) -> Iterator[str | Path]:
    """The files and folders that a parameter's value names; an alias, say, is none."""
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, str | Path) and os.path.exists(each):
            yield each


json_option = outlet("--json", "json_path", help="Write everything here as JSON.")
id_option = click.option(
    "--id-column", metavar="NAME", type=NAME, default="id", show_default=True, help="Column of unique ids."
)
text_option = click.option(
    "--text-column", metavar="NAME", type=NAME, default="request", show_default=True,
    help="Column of request texts.",
)  # fmt: skip
base_option = click.option(
    "--base-model", metavar="REF", type=NAME,
    help="The base model's folder or hub id.  [default: the bundle's]",
)  # fmt: skip
