"""What a run did: the summary for the manifest, and the table people read."""

import dataclasses
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batch.errors import one_line
from batch.reporting.tally import Tally
from batch.scoring.router import Counts

NOTES = 10  # on the input that are told; the manifest has all
PACE_POINTS = 60  # of a run's throughput over time, at most


class Pace:
    """Rows over time: at most `PACE_POINTS` points ``(seconds, rows)``, thinned out as the run goes on."""

    def __init__(self) -> None:
        self.points: list[tuple[float, int]] = []
        self._every = 0.5  # seconds between two points

    def note(self, seconds: float, rows: int) -> None:
        if self.points and seconds < self.points[-1][0] + self._every:
            return
        self.points.append((seconds, rows))
        if len(self.points) > PACE_POINTS:
            del self.points[1::2]
            self._every *= 2


@dataclasses.dataclass
class Device:
    """What one device's engine did in a run."""

    counts: Counts
    begun: float  # time.monotonic() when it was ready
    seconds: float = 0.0
    restarts: int = 0
    usage: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def done(self, restarts: int, usage: Mapping[str, Any]) -> None:
        self.seconds, self.restarts, self.usage = time.monotonic() - self.begun, restarts, usage

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": self.counts.rows,
            "rows_per_second": self.counts.rows / self.seconds if self.seconds else None,
            "restarts": self.restarts,
            "idle_seconds": self.usage.get("idle_seconds"),
        }

    def as_text(self) -> tuple[str, str]:
        speed = self.counts.rows / self.seconds if self.seconds else 0.0
        idle = self.usage.get("idle_seconds") or 0.0
        return (
            f"rows, rows/s; {self.restarts} restarts, {idle:.1f} s idle",
            f"{self.counts.rows}, {speed:.1f}",
        )


@dataclasses.dataclass
class Summary:
    """The whole of a run."""

    run_id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    tally: Tally = dataclasses.field(default_factory=Tally)
    resumed_rows: int = 0
    engine: dict[str, Any] = dataclasses.field(default_factory=dict)  # what its devices have in common
    devices: dict[int, Device] = dataclasses.field(default_factory=dict)
    startup_seconds: float | None = None  # until the first engine was ready
    seconds_to_first_row: float | None = None
    routing_seconds: float = 0.0
    seconds: float = 0.0
    columns: tuple[str, ...] = ()  # of the input, as they were read
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)  # of `triage`, by adapter
    notes: tuple[str, ...] = ()  # what of the input was not read, or did not stay as it was
    already_done: bool = False
    retry: bool = False  # only the error rows of a finished output were routed
    pace: Pace = dataclasses.field(default_factory=Pace)
    drift: dict[str, Any] | None = None  # see `batch.reporting.drift.compare`
    warnings: list[str] = dataclasses.field(default_factory=list)  # what went wrong and did not stop it

    @property
    def counts(self) -> Counts:
        """Of this run alone."""
        return Counts.total([device.counts for device in self.devices.values()])

    @property
    def rows_per_second(self) -> float | None:
        return self.counts.rows / self.routing_seconds if self.routing_seconds else None

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.run_id,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": {"columns": self.columns, "notes": self.notes},
            "tally": self.tally.as_json(),
            "thresholds": self.thresholds,
            "error_rate": self.tally.error_rate,
            "mean_score": self.tally.mean_score,
            "resumed_rows": self.resumed_rows,
            "retried_rows": self.counts.rows if self.retry else 0,
            "inferred": self.counts.inferred,
            "deduplicated": self.counts.deduplicated,
            "cached": self.counts.cached,
            "rows_per_second": self.rows_per_second,
            "prefix_cache_hit_rate": self.counts.cache_hit_rate,
            "prompt_tokens": self.counts.prompt_tokens,
            "answer_tokens": self.counts.answer_tokens,
            "startup_seconds": self.startup_seconds,
            "seconds_to_first_row": self.seconds_to_first_row,
            "seconds": self.seconds,
            "engine": self.engine,
            "warnings": self.warnings,
            "devices": {str(number): device.as_json() for number, device in self.devices.items()},
            "pace": {f"{seconds:.1f}": rows for seconds, rows in self.pace.points},
        }

    def adopt(self, manifest: Mapping[str, Any]) -> Self:
        """Become the summary of a run that had finished before."""
        told = manifest["run"]
        self.tally, self.engine = Tally.from_json(told["tally"]), told["engine"]
        self.drift, self.already_done = manifest.get("drift"), True
        read = told.get("input", {})
        self.columns, self.notes = tuple(read.get("columns", ())), tuple(read.get("notes", ()))
        return self


def show(summary: Summary, output: str, console: Console) -> None:
    """Print the summary as tables."""
    tally = summary.tally
    table = Table(title=f"{one_line(output)}: {tally.rows} rows", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(justify="right")
    for field, values in tally.values.items():
        for index, (value, count) in enumerate(values.most_common()):
            table.add_row("" if index else field, value, f"{count}  {count / tally.rows:6.1%}")
        table.add_section()
    if tally.mean_score is not None:
        table.add_row("mean score", "", f"{tally.mean_score:.3f}")
    if tally.triage:
        for title, value, meaning in (
            ("triage", "auto", "needs no person"),
            ("", "human", "for a person"),
        ):
            count = tally.triage[value]
            table.add_row(title, f"{value}: {meaning}", f"{count}  {count / tally.rows:6.1%}")
    table.add_row("errors", "", f"{tally.error_rows}  {tally.error_rate:6.1%}")
    for code, count in tally.errors.most_common():
        table.add_row("", code, str(count))
    table.add_row("rule violations", "", str(tally.violations.total()))
    for rule, count in tally.violations.most_common():
        table.add_row("", rule, str(count))
    if not summary.already_done:
        table.add_section()
        if summary.resumed_rows:
            table.add_row("resumed", "rows of an earlier run", str(summary.resumed_rows))
        if summary.retry:
            table.add_row("retried", "rows that were errors", str(summary.counts.rows))
        if summary.counts.deduplicated or summary.counts.cached:
            table.add_row("not asked again", "texts repeated in this run", str(summary.counts.deduplicated))
            table.add_row("", "known from the cache", str(summary.counts.cached))
        if summary.rows_per_second:
            table.add_row("speed", "rows/s", f"{summary.rows_per_second:.1f}")
            table.add_row("prefix cache", "hit rate", f"{summary.counts.cache_hit_rate:.1%}")
        if summary.startup_seconds is not None:
            table.add_row("time", "until the engine was ready", f"{summary.startup_seconds:.1f} s")
        for number, device in sorted(summary.devices.items()) if len(summary.devices) > 1 else ():
            table.add_row(f"device {number}", *device.as_text())
        table.add_row("time", "all of it", f"{summary.seconds:.1f} s")
    console.print(table)
    for warning in summary.warnings:
        console.print(f"Warning: {warning}", soft_wrap=True)
    show_input(summary.columns, summary.notes, console)
    if summary.engine.get("made_up"):
        made_up = "A stand-in engine made these answers up; they are for I/O tests only."
        console.print(made_up, style="bold red")
    if summary.already_done:
        console.print("This run was finished before; nothing was done again (--fresh does it again).")


def show_input(columns: Sequence[str], notes: Sequence[str], console: Console) -> None:
    """Which columns were read, and what was not: names are the user's, each line stays one."""
    lines = [f"columns read: {', '.join(columns)}", *notes[:NOTES]]
    if len(notes) > NOTES:
        lines.append(f"and {len(notes) - NOTES} more of the kind, in the manifest")
    for line in lines:
        console.print(Text(one_line(line)), soft_wrap=True)
