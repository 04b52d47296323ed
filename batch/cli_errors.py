"""What both command lines share: however a command ends, it is one line on stderr and an exit code."""

import contextlib
import math
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import click

from batch.errors import BatchRouteError, Interrupted, one_line, ours, without_credentials
from batch.events import JsonLines

HELP = {"help_option_names": ["-h", "--help"]}
LOG_JSON = "--log-json"
WORDS = f"{__name__}.words"  # of the command line, in click's `meta`
EMPTY = "it is empty (is a variable unset?)"


def printable(text: str) -> str:
    """`text` as UTF-8, what is none of it escaped."""
    return text.encode(errors="backslashreplace").decode()


class Failure(click.ClickException):
    """A `BatchRouteError` on its way out of click."""

    def __init__(self, error: BatchRouteError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"Error: {self.format_message()}", file=file, err=True)


class JsonFailure(click.ClickException):
    """What click refuses, as the line that `--log-json` asks for."""

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(one_line(error.format_message()))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        emit = JsonLines(secrets.token_hex(8), file)
        emit("error", level="error", exit_code=self.exit_code, message=self.message)


@contextlib.contextmanager
def parsing(words: Sequence[str]) -> Iterator[None]:
    """What click refuses is told without credentials. Before the options are known, `--log-json` is only one
    of the words.
    """
    try:
        yield
    except click.UsageError as error:
        error.message = one_line(without_credentials(error.message))  # type: ignore[misc]
        if LOG_JSON not in words:
            raise
        raise JsonFailure(error) from error


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn every exception into a line and an exit code."""
    try:
        yield
    except click.UsageError as error:  # of a command in a group
        context = click.get_current_context(silent=True)
        with parsing(context.meta.get(WORDS, ()) if context else ()):
            raise error
    except (click.ClickException, click.Abort, click.exceptions.Exit):
        raise
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit) and not isinstance(error, Interrupted):
            raise
        end = ours(error)
        if isinstance(end, Interrupted):
            told = str(end)
            click.echo(told[0].upper() + told[1:], err=True)
            raise SystemExit(end.exit_code) from None
        raise Failure(end) from error


class Number(click.FloatRange):
    """A number in a range; NaN is in none, whatever it is compared with."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number in the range {self._describe_range()}", param, ctx)
        return number


class Name(click.ParamType):  # type: ignore[type-arg]  # older ones take none
    """A name of a column, an adapter or a base: in UTF-8, and not empty, as an unset variable is."""

    name = "text"

    def __init__(self, may_be_empty: bool = False) -> None:
        self._may_be_empty = may_be_empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not text and not self._may_be_empty:
            self.fail(EMPTY, param, ctx)
        if printable(text) != text:
            self.fail(f"{printable(text)} is not valid UTF-8", param, ctx)
        return text


class LocalPath(click.Path):
    """A path on this machine: not empty, as an unset variable is, and no URI. A slash at the end, which a
    `Path` forgets, makes it a folder: where a `file` is to be written, that is refused.
    """

    def __init__(self, file: bool = False) -> None:
        super().__init__(path_type=Path)
        self._file = file

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = str(value)
        if not text:
            self.fail(EMPTY, param, ctx)
        if "://" in text:
            self.fail(f"{text} is a URI; name a path on this machine", param, ctx)
        if self._file and text.endswith("/"):
            self.fail(f"{text} is a folder; name a file in it", param, ctx)
        path: Path = super().convert(value, param, ctx)  # type: ignore[assignment]
        return path


PATH = LocalPath()
FILE = LocalPath(file=True)


class ErrorCommand(click.Command):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": HELP, **kwargs})

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        with translated(), parsing([*args]):  # it takes them out of the list
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with translated():
            return super().invoke(ctx)


class CommandWithOthers(ErrorCommand):
    """A command that takes its own arguments, unless the first is the name of one of the `others`.

    A file of such a name is `./verify`.
    """

    def __init__(self, *args: Any, others: dict[str, click.Command], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.others = others

    def main(  # type: ignore[override]
        self, args: Any = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        if words and words[0] in self.others:
            other = self.others[words[0]]
            return other.main(words[1:], f"{prog_name or Path(sys.argv[0]).name} {words[0]}", **extra)
        return super().main(words, prog_name, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Other commands"):
            formatter.write_dl([(name, _first_paragraph(other)) for name, other in self.others.items()])


def _first_paragraph(command: click.Command) -> str:
    return " ".join((command.help or "").partition("\n\n")[0].split())


class ErrorGroup(click.Group):
    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        words = [*args]  # those of its command too
        with translated(), parsing(words):
            context = super().make_context(info_name, args, *rest, **extra)
        context.meta[WORDS] = words
        return context

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The first paragraph of each command's help, whole: click cuts it off."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_paragraph(each)) for name, each in found if each])

    def invoke(self, ctx: click.Context) -> Any:
        with translated():
            return super().invoke(ctx)
