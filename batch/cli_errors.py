"""What both command lines share: an error that a user can meet is one line on stderr and its exit code."""

import contextlib
import errno
from collections.abc import Iterator
from typing import IO, Any

import click

from batch.errors import BatchRouteError, StorageError

INTERRUPTED = 130  # 128 + SIGINT


class Failure(click.ClickException):
    """A `BatchRouteError` on its way out of click."""

    def __init__(self, error: BatchRouteError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"Error: {self.format_message()}", file=file, err=True)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn `BatchRouteError`, a full or broken disk and Ctrl-C into a line and an exit code."""
    try:
        yield
    except BatchRouteError as error:
        raise Failure(error) from error
    except KeyboardInterrupt as error:
        click.echo("Interrupted; run again to resume", err=True)
        raise SystemExit(getattr(error, "exit_code", INTERRUPTED)) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        where = f" at {error.filename}" if error.filename else ""
        raise Failure(StorageError(f"{error.strerror}{where}; make room and run again")) from error


class ErrorCommand(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        with translated():
            return super().invoke(ctx)


class ErrorGroup(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        with translated():
            return super().invoke(ctx)
