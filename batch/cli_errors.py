"""What both command lines share: however a command ends, it is one line on stderr and an exit code."""

import contextlib
import errno
import math
from collections.abc import Iterator
from typing import IO, Any

import click

from batch.errors import BatchRouteError, Interrupted, ours


class Failure(click.ClickException):
    """A `BatchRouteError` on its way out of click."""

    def __init__(self, error: BatchRouteError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"Error: {self.format_message()}", file=file, err=True)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn every exception into a line and an exit code."""
    try:
        yield
    except (click.ClickException, click.Abort, click.exceptions.Exit):
        raise
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit) and not isinstance(error, Interrupted):
            raise
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # who read our output has enough: click ends quietly
        end = ours(error)
        if isinstance(end, Interrupted):
            click.echo("Interrupted; run again to resume", err=True)
            raise SystemExit(end.exit_code) from None
        raise Failure(end) from error


class Number(click.FloatRange):
    """A number in a range; NaN is in none, whatever it is compared with."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number of the range {self._describe_range()}", param, ctx)
        return number


class ErrorCommand(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        with translated():
            return super().invoke(ctx)


class ErrorGroup(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        with translated():
            return super().invoke(ctx)
