"""`--shard I/N` and `batch-route commit`: one job scored by several processes, and how any run ends."""

import contextlib
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from batch.cli_errors import FILE, PATH, ErrorCommand, Number
from batch.errors import EXIT_TOO_MANY_ERRORS, one_line, ours


class Shard(click.ParamType):  # type: ignore[type-arg]  # older click has none
    """``I/N`` with 0 <= I < N, as a pair of whole numbers."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value)
        if not found or not int(found[1]) < int(found[2]):
            self.fail(
                f"{value!r} is not a shard; write 0/4 for the first of four, 3/4 for the last", param, ctx
            )
        return int(found[1]), int(found[2])


SHARD = Shard()

# what a run and `commit` take alike
max_error_rate_option = click.option(
    "--max-error-rate", metavar="F", type=Number(0, 1), default=0.01, show_default=True,
    help="Exit with 3 if more of the rows are errors.",
)  # fmt: skip
report_option = click.option(
    "--report", metavar="PATH", type=FILE, help="Write an HTML report of the finished output."
)
log_json_option = click.option(
    "--log-json", is_flag=True, help="Write JSON log lines on stderr, and nothing else there."
)


@click.command(cls=ErrorCommand)
@click.argument("output")
@click.option(
    "--work-dir",
    metavar="DIR",
    type=PATH,
    help="Folder for unfinished work, as the shards were given it.  [default: next to OUTPUT]",
)
@max_error_rate_option
@report_option
@click.option("--metrics", metavar="PATH", type=FILE, help="Write a Prometheus textfile.")
@log_json_option
def commit(
    output: str,
    work_dir: Path | None,
    max_error_rate: float,
    report: Path | None,
    metrics: Path | None,
    log_json: bool,
) -> None:
    """Verify what shards have scored for OUTPUT, and publish it.

    Exit codes are those of a run; 75 also means that some units, which are listed, are not scored yet.
    """
    from batch.commit import commit
    from batch.reporting.observer import Observer, Outlets

    with logged(log_json):
        result = commit(output, work_dir, max_error_rate, Observer(Outlets(log_json, metrics, report)))
    end(result, output, max_error_rate, log_json)


def shard(wanted: Any, outlets: Any) -> None:
    """One shard, and a line on what is left of the job."""
    from batch.errors import InputError
    from batch.reporting.observer import Observer
    from batch.reporting.progress import ProgressLine
    from batch.shard import score_shard

    if outlets.report:
        raise InputError("--report is for a whole output; give it to `batch-route commit`")
    with logged(outlets.log_json), nullcontext() if outlets.log_json else ProgressLine() as progress:
        phases = progress.phase if progress else None
        left = score_shard(wanted, Observer(outlets, progress, phases))
    name, output = "{}/{}".format(*wanted.shard), one_line(wanted.output)
    if left.done:
        told = f"{output} is complete already; nothing was done"
    elif left.units:
        told = f"done; {left.units} of the job's {left.of} units are left to other shards"
    else:
        told = f"done; no unit is left, publish with: batch-route commit {output}"
    with contextlib.suppress(OSError):
        click.echo(f"shard {name}: {told}")


@contextlib.contextmanager
def logged(log_json: bool) -> Iterator[None]:
    """With `--log-json` an error was told as a JSON line, so that it ends the program without another."""
    try:
        yield
    except BaseException as error:
        if log_json:
            raise SystemExit(ours(error).exit_code) from error
        raise


def end(result: Any, output: str, max_error_rate: float, log_json: bool) -> None:
    """Print the summary; exit 3 where too many rows are errors."""
    from batch.reporting import summary
    from batch.reporting.console import PlainConsole

    with contextlib.suppress(OSError):  # a full disk takes no words; the output is complete
        summary.show(result, output, PlainConsole())
    if result.tally.error_rate <= max_error_rate:
        return
    if not log_json:
        click.echo(
            f"Error: {result.tally.error_rows} of {result.tally.rows} rows are errors, more than "
            f"--max-error-rate {max_error_rate} allows; the output is complete, see its error_code column",
            err=True,
        )
    raise SystemExit(EXIT_TOO_MANY_ERRORS)
