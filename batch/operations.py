"""A run as an operator sees it: what it tells the outside about itself, however it ends."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from batch import __version__, run
from batch.errors import EXIT_TOO_MANY_ERRORS, BatchRouteError
from batch.events import emit, json_lines
from batch.files import check_writable, shown
from batch.metrics import write_metrics
from batch.report import write_report
from batch.summary import Summary


@dataclasses.dataclass(frozen=True)
class Outlets:
    """Where a run tells of itself; None and False are silent."""

    log_json: bool = False
    metrics: Path | None = None
    report: Path | None = None

    def check(self) -> None:
        """Refuse places that cannot be written before any work is done: `InputError`."""
        for option, path in (("--metrics", self.metrics), ("--report", self.report)):
            if path:
                check_writable(path, option)


def operate(
    options: run.Options, outlets: Outlets, progress: run.Progress | None = None, engine_for: run.EngineFor | None = None
) -> Summary:
    """Route a backlog and tell of it. Raises what :func:`batch.run.run` raises, after it was told.

    Metrics are written of a failed run too; the report only of a finished output.
    """
    summary = Summary()
    with json_lines(summary.run_id) if outlets.log_json else contextlib.nullcontext(), _told(options, outlets, summary):
        outlets.check()
        run.run(options, progress, summary, engine_for)
        if outlets.report:
            write_report(outlets.report, options.output)
    return summary


@contextlib.contextmanager
def _told(options: run.Options, outlets: Outlets, summary: Summary) -> Iterator[None]:
    """Events and metrics around a run."""
    started = time.monotonic()
    emit("start", version=__version__, input=shown(options.input), output=shown(options.output), adapter=options.adapter)
    try:
        yield
    except BaseException as error:
        code, message = _told_of(error)
        emit("error", logging.ERROR, exit_code=code, message=message)
        summary.seconds = time.monotonic() - started
        if outlets.metrics:
            with contextlib.suppress(BatchRouteError, OSError):  # the error above is the one to tell
                write_metrics(outlets.metrics, summary, code, time.time())
        raise
    summary.seconds = time.monotonic() - started
    tally = summary.tally
    code = EXIT_TOO_MANY_ERRORS if tally.error_rate > options.max_error_rate else 0
    if outlets.metrics:
        write_metrics(outlets.metrics, summary, code, time.time())
    emit(
        "done",
        exit_code=code,
        already_done=summary.already_done,
        rows=tally.rows,
        resumed_rows=summary.resumed_rows,
        errors=dict(tally.errors),
        violations=dict(tally.violations),
        rows_per_second=summary.rows_per_second,
        seconds=summary.seconds,
    )


def _told_of(error: BaseException) -> tuple[int, str]:
    """Exit code and message. Only our own messages are known to hold no request text; of others the type must do."""
    if isinstance(error, BatchRouteError):
        return error.exit_code, str(error)
    code = 130 if isinstance(error, KeyboardInterrupt) else 75 if isinstance(error, OSError) else 1
    return code, type(error).__name__
