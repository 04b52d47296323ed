"""Progress of a run on stderr: phases with their times, and while rows are routed how many and how fast.

A terminal has a line that moves; elsewhere a plain line is written now and then.
"""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from batch.reporting.console import PlainConsole
from batch.scoring.router import Counts

PLAIN_SECONDS = 15.0  # between two plain lines
NOT_YET = ""  # before the first phase
WHOLE = Column(no_wrap=True)  # the bar takes what such words leave


class ProgressLine:
    """Tell it of each `phase` that begins; call it with a run's counts and the number of rows it routes."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or PlainConsole(stderr=True)
        self._bar = _bar(self._console)
        self._task = self._bar.add_task("checking the input", total=None, detail="")
        self._phase, self._began, self._said = NOT_YET, 0.0, 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self._ended()
        self._bar.stop()

    def phase(self, name: str) -> None:
        """`name` begins now, and what went before has ended. The check of the input, which may end in a
        refusal, is shown on a terminal only.
        """
        self._ended()
        self._phase, self._began = name, time.monotonic()
        self._said = self._began
        self._bar.reset(self._task, description=name, total=None, detail="")
        if not self._console.is_terminal:
            self._console.print(name)

    def __call__(self, counts: Counts, total: int) -> None:
        now = time.monotonic()
        seconds = now - self._began
        speed = counts.rows / seconds if seconds else 0.0
        detail = f"{speed:.0f} rows/s" + (f", {counts.errors} errors" if counts.errors else "")
        self._bar.update(self._task, completed=counts.rows, total=total, detail=detail)
        if not self._console.is_terminal and now - self._said > PLAIN_SECONDS:
            remaining = f", remaining {clock((total - counts.rows) / speed)}" if speed else ""
            self._console.print(
                f"{counts.rows} of {total} rows, {detail}, elapsed {clock(seconds)}{remaining}",
                soft_wrap=True,
            )
            self._said = now

    def _ended(self) -> None:
        if self._phase:
            self._console.print(f"{self._phase}: {time.monotonic() - self._began:.1f} s")
        self._phase = NOT_YET


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _bar(console: Console) -> Progress:
    """One line of a terminal."""
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=None),
        _Rows(WHOLE), Times(WHOLE),
        console=console, disable=not console.is_terminal, transient=True, expand=True,
    )  # fmt: skip


class _Rows(ProgressColumn):
    """How many rows of how many, and how fast; nothing before their number is known."""

    def render(self, task: Task) -> Text:
        rows = f"{task.completed:.0f}/{task.total:.0f} {task.fields['detail']}" if task.total else ""
        return Text(rows, no_wrap=True)


class Times(ProgressColumn):
    """Elapsed and remaining, by name."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        text = f"elapsed {clock(task.elapsed or 0)}" + (f", remaining {clock(left)}" if left else "")
        return Text(text, no_wrap=True)
