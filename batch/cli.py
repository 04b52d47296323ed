"""`batch-route`: click only. What loads pyarrow or starts an engine is imported inside the command."""

import gc
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from batch import __version__
from batch.cli_errors import FILE, PATH, CommandWithOthers, Name, Number
from batch.cli_outputs import show, verify
from batch.cli_shards import (
    SHARD,
    commit,
    end,
    log_json_option,
    logged,
    max_error_rate_option,
    report_option,
    shard,
)
from batch.completion import adapters
from batch.errors import one_line, shown
from batch.events import log_stderr_as_json
from batch.imports import uncollected

MOST_PATIENCE = 1e7  # seconds; the kernel counts microseconds


def size(text: str) -> int:
    """Bytes, with an optional K, M, G or T for powers of 1024."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not digits.isascii() or not digits.isdigit() or not int(digits) or unit not in ("", *"KMGT"):
        raise click.BadParameter(f"{text!r} is not a valid size; write bytes, or 500M, 2G")
    return int(digits) << (10 * ("KMGT".index(unit) + 1) if unit else 0)


def duration(text: str) -> float:
    """Seconds, of `90m`, `1h30m`, `45s` or whole seconds."""
    parts = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,7})s?)?", text, re.ASCII)
    hours, minutes, rest = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    seconds = 3600 * hours + 60 * minutes + rest
    if not 0 < seconds <= MOST_PATIENCE:
        raise click.BadParameter(f"{text!r} is not a valid duration; write 90m, 2h or 45s")
    return float(seconds)


@click.command(
    cls=CommandWithOthers,
    others={"verify": verify, "show": show, "commit": commit},
)
@click.argument("input")
@click.argument("output")
@click.option(
    "--adapter",
    metavar="REF",
    type=Name(),
    default="champion",
    show_default=True,
    shell_complete=adapters,
    help="Bundle directory, digest or alias.",
)
@click.option(
    "--adapter-column",
    metavar="NAME",
    type=Name(),
    help="Column that names each row's adapter; rows with null use --adapter.",
)
@click.option(
    "--base-model",
    metavar="REF",
    type=Name(),
    help="The base model's folder or hub id.  [default: the bundle's]",
)
@click.option(
    "--id-column", metavar="NAME", type=Name(), default="id", show_default=True, help="Column of unique ids."
)
@click.option(
    "--text-column",
    metavar="NAME",
    type=Name(),
    default="request",
    show_default=True,
    help="Column of request texts.",
)
@click.option(
    "--prefix",
    metavar="P",
    type=Name(may_be_empty=True),
    default="",
    help="Put P before the names of the output's new columns.",
)
@click.option("--limit", metavar="N", type=click.IntRange(min=0), help="Route the first N rows only.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything that needs no engine; print rows, tokens, time."
)
@max_error_rate_option
@click.option(
    "--retry-errors", is_flag=True, help="Run again only the rows in error of this job's finished output."
)
@click.option(
    "--reasons",
    type=click.Choice(["all", "human", "none"]),
    default="all",
    show_default=True,
    help="Rows that get their free-text fields: all, those for a person, or none. Labels and scores stay.",
)
@report_option
@click.option(
    "--metrics", metavar="PATH", type=FILE, help="Write a Prometheus textfile, also for a failed run."
)
@log_json_option
@click.option(
    "--watch",
    is_flag=True,
    help="INPUT and OUTPUT are folders: keep the engine warm, route each file that arrives.",
)
@click.option("--fresh", is_flag=True, help="Discard an unfinished run instead of resuming it.")
@click.option(
    "--work-dir",
    metavar="DIR",
    type=PATH,
    help="Folder for unfinished work; outputs may share it.  [default: next to OUTPUT]",
)
@click.option("--cache", metavar="DIR", type=PATH, help="Keep answers here, for equal texts of later runs.")
@click.option(
    "--cache-max",
    metavar="SIZE",
    type=size,
    default="1G",
    show_default=True,
    help="Largest size of the cache: 500M, 2G, …",
)
@click.option(
    "--deadline",
    metavar="DURATION",
    type=duration,
    help="Stop before DURATION (90m, 2h, 45s) has elapsed and exit with 75; finished work is kept.",
)
@click.option(
    "--engine-timeout", metavar="SECONDS", type=Number(1, MOST_PATIENCE), default=600, show_default=True,
    help="Restart an engine that has made no progress for this long.",
)  # fmt: skip
@click.option(
    "--max-num-seqs",
    type=click.IntRange(1, 1 << 16),
    help="Requests that the engine runs at once.  [default: 512 on a GPU of 70 GiB or more, else 256]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="The engine's number format.  "
    "[default: bfloat16 where the hardware computes in it, else float32 on a CPU, float16 on a GPU]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 4096),
    help="CPU threads of an engine.  [default: the cores, shared by the engines]",
)
@click.option(
    "--devices",
    metavar="N|all|0,1",
    help="GPUs, an engine each (0,0: two on one); without a GPU, engines that share the cores.  "
    "[default: all GPUs, or 1]",
)
@click.option(
    "--shard",
    metavar="I/N",
    type=SHARD,
    help="Score every N-th unit only, from the I-th on (0 is the first); `commit` publishes.",
)
@click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="auto",
    help="Score on a Ray cluster: HOST:PORT of a node, or without ADDRESS the one that runs here.",
)
@click.option(
    "--tensor-parallel",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Devices that an engine spans, for a base that one device does not hold.",
)
@click.option(
    "--draft-tokens",
    type=click.IntRange(0, 16),
    help="Tokens to draft per step.  [default: 4 on a CPU, none on a GPU]",
)
@click.version_option(__version__, prog_name="batch-route")
@click.option("--engine", hidden=True)  # of `batch.engine.ENGINES`, which a call for help does not load
def main(
    dry_run: bool, watch: bool, report: Path | None, metrics: Path | None, log_json: bool, **options: Any
) -> None:
    """Classify the requests in INPUT (a Parquet file, a directory or a glob) and write them, scored, to
    OUTPUT.

    Exit codes: 0 done; 2 refused, nothing written; 3 done, but too many rows are errors; 4 another run holds
    OUTPUT; 75 the engine or the machine failed, or the deadline was reached, run again to resume; 130, 143
    interrupted, run again to resume.
    """
    with uncollected():
        from batch.dry_run import show_plan
        from batch.job import Options, check, kept_folders
        from batch.reporting.console import PlainConsole
        from batch.reporting.observer import Observer, Outlets
        from batch.reporting.progress import ProgressLine
        from batch.run import run

    # rows are in no cycles: collecting as often as Python does took an eighth of the run
    gc.set_threshold(1_000_000)

    wanted = Options(**{name: value for name, value in options.items() if value is not None})
    outlets = Outlets(log_json, metrics, report)
    if log_json:
        log_stderr_as_json()  # what is refused before a run; a run says by itself how it ends
    if dry_run:
        outlets.check(wanted.input, wanted.output, kept_folders(wanted))
        show_plan(check(wanted), PlainConsole())
        return
    if watch:
        _watch(wanted, outlets)
        return
    if wanted.shard:
        shard(wanted, outlets)
        return
    with logged(log_json), nullcontext() if log_json else ProgressLine() as progress:
        phases = progress.phase if progress else None
        result = run(wanted, Observer(outlets, progress, phases))
    end(result, wanted.output, wanted.max_error_rate, log_json)


def _watch(wanted: Any, outlets: Any) -> None:
    """Until a signal; a line for each file."""
    from batch import watch as folder
    from batch.adapter.registry import Registry
    from batch.errors import InputError
    from batch.job import Options, kept_folders
    from batch.reporting.observer import Observer
    from batch.run import EnginesFor, run

    for option, given in {
        "--report": outlets.report,
        "--retry-errors": wanted.retry_errors,
        "--limit": wanted.limit is not None,
        "--deadline": wanted.deadline is not None,
        "--shard": wanted.shard is not None,
        "--ray": wanted.ray is not None,
    }.items():
        if given:
            raise InputError(f"{option} does not go with --watch; leave it out")

    def say(line: str) -> None:
        click.echo(one_line(line), err=True)

    registry = Registry()
    outlets.check(wanted.input, wanted.output, kept_folders(wanted, registry))

    def route(options: Options, engines_for: EnginesFor) -> None:
        result = run(options, Observer(outlets), engines_for, registry)
        speed = f", {result.rows_per_second:.1f} rows/s" if result.rows_per_second else ""
        say(f"{Path(options.input).name}: {result.tally.rows} rows, {result.tally.error_rows} errors{speed}")

    say(f"watching {shown(wanted.input)}")
    folder.watch(wanted, route, lambda line: say(f"Warning: {line}"))
