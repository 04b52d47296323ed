"""Progress of a run on stderr: a bar on a terminal, a plain line now and then elsewhere."""

import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from batch.reporting.console import PlainConsole
from batch.scoring.router import Counts

PLAIN_SECONDS = 15.0  # between two plain lines


class ProgressLine:
    """Call it with a run's counts and the number of rows it has to route."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or PlainConsole(stderr=True)
        self._plain = None if console.is_terminal else console
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(),
            console=console, disable=self._plain is not None, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("starting the engine", total=None, detail="")
        self._first = self._said = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        if self._plain:
            self._plain.print("starting the engine")
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def __call__(self, counts: Counts, total: int) -> None:
        now = time.monotonic()
        self._first = self._first or now
        speed = counts.rows / (now - self._first) if now > self._first else 0.0
        detail = f"{speed:.0f} rows/s, {counts.errors} errors"
        self._bar.update(self._task, description="routing", completed=counts.rows, total=total, detail=detail)
        if self._plain and now - self._said > PLAIN_SECONDS:
            left = f", {(total - counts.rows) / speed:.0f} s left" if speed else ""
            self._plain.print(f"{counts.rows}/{total} rows, {detail}{left}")
            self._said = now
