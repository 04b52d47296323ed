"""What observes a run: what it is told becomes the summary, the progress line, JSON lines, metrics and the
report.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from batch import __version__
from batch.errors import EXIT_TOO_MANY_ERRORS, BatchRouteError, one_line, ours, shown
from batch.events import JsonLines, nobody
from batch.reporting.summary import NOTES, Device, Summary
from batch.reporting.tally import Tally
from batch.scoring.router import Counts
from batch.storage.backlog import Backlog
from batch.storage.manifest import Proof
from batch.storage.places import Places, check_outlets, refuse_inside
from batch.storage.written_plan import WrittenPlan

Progress = Callable[[Counts, int], None]  # (counts of this run, rows that it has to score)
Phases = Callable[[str], None]  # hears the name of each part of a run as it begins


@dataclasses.dataclass(frozen=True)
class Outlets:
    """Where a run reports on itself; None and False are silent."""

    log_json: bool = False
    metrics: Path | None = None
    report: Path | None = None

    @property
    def files(self) -> Places:
        return {"--metrics": self.metrics, "--report": self.report}

    def check(self, source: str, output: str, kept: Places | None = None) -> None:
        """Refuse, before any work, places that cannot be written, or that are the run's own or lie in what is
        `kept` for others: `InputError`.
        """
        check_outlets(source, output, self.files, kept)


SILENT = Outlets()


class Observer:
    """Observes one run. Its methods are called in the order in which they are defined."""

    def __init__(
        self, outlets: Outlets = SILENT, progress: Progress | None = None, phases: Phases | None = None
    ) -> None:
        self.summary = Summary()
        self._outlets, self._progress, self._phases = outlets, progress, phases
        self._emit = JsonLines(self.summary.run_id) if outlets.log_json else nobody
        self._started = self._begun = time.monotonic()
        self._rows = self._asks = 0
        self._begun_phases: set[str] = set()
        self._checked = False  # until then metrics could be written over the input, or the base model

    def emit(self, event: str, *, level: str = "info", **facts: Any) -> None:
        self._emit(event, level=level, **facts)
        if level == "warning":
            told = ", ".join(f"{name} {value}" for name, value in facts.items())
            self.summary.warnings.append(one_line(f"{event}: {told}"))

    def phase(self, name: str) -> None:
        """What takes the time from now on, told once: of several engines that load, one may be late."""
        if self._phases and name not in self._begun_phases:
            self._begun_phases.add(name)
            self._phases(name)

    @contextlib.contextmanager
    def around(
        self, source: str, output: str, adapter: str, max_error_rate: float, kept: Places | None = None
    ) -> Iterator[None]:
        """Report on the run in the block, however it ends: metrics of a failed one too, the report only of a
        finished output. Neither may lie in a folder that is `kept` for others.
        """
        places = {"input": shown(source), "output": shown(output), "adapter": shown(adapter)}
        self.emit("start", version=__version__, **places)
        try:
            self._outlets.check(source, output, kept)
            self._checked = True
            yield
            if self._outlets.report:
                from batch.reporting.html import write_report  # it loads polars, which only a report needs

                write_report(self._outlets.report, output)
            tally = self.summary.tally
            code = EXIT_TOO_MANY_ERRORS if tally.error_rate > max_error_rate else 0
            self._write_metrics(code)
        except BaseException as error:
            end = ours(error)
            self.emit("error", level="error", exit_code=end.exit_code, message=str(end))
            with contextlib.suppress(BatchRouteError, OSError):  # the error above is the one to tell
                self._write_metrics(end.exit_code)
            raise
        self.emit(
            "done",
            exit_code=code,
            already_done=self.summary.already_done,
            rows=tally.rows,
            resumed_rows=self.summary.resumed_rows,
            errors=dict(tally.errors),
            violations=dict(tally.violations),
            rows_per_second=self.summary.rows_per_second,
            seconds=self.summary.seconds,
        )

    def checked(
        self, backlog: Backlog, plan: WrittenPlan, model: Path | None = None, notes: Sequence[str] = ()
    ) -> None:
        """`model` is the base model's folder, where it is known; `notes` are on its adapters."""
        self._checked = False
        refuse_inside(self._outlets.files, {"the base model": model})
        self._checked = True
        self._rows, adapters, base = plan.rows, list(plan.thresholds), plan.facts["base"]["ref"]
        self.summary.thresholds = {
            name: least for name, least in plan.thresholds.items() if least is not None
        }
        self.summary.columns = tuple(backlog.schema.names)
        self.summary.notes = (*notes, *backlog.notes)
        told = self.summary.notes[:NOTES]
        self.emit("checked", rows=plan.rows, input=backlog.source, adapters=adapters, base=base, notes=told)

    def resumed(self, tally: Tally, asks: int, repeats: bool, engine: dict[str, Any]) -> None:
        """`tally` is of the rows that an earlier run had finished, on an `engine` of these facts; `asks`
        counts those to score, which `repeats` says were scored before.
        """
        self.summary.engine = dict(engine)
        self.summary.tally, self.summary.resumed_rows, self.summary.retry = tally, tally.rows, repeats
        self._asks = asks if repeats else asks - tally.rows

    def engine_ready(
        self,
        device: int,
        facts: Mapping[str, Any],
        canary: Mapping[str, Any],
        counts: Counts,
        since: float | None = None,
    ) -> None:
        """`counts` goes on counting what passes through this device's router, which it has done `since` then
        (`time.monotonic()`), by default now.
        """
        begun = time.monotonic() if since is None else since
        if not self.summary.devices:
            self._begun = begun
            self.summary.startup_seconds = self._begun - self._started
            self.summary.engine = {**facts, "canary": canary}
            self.phase("routing")
        self.summary.devices[device] = Device(counts, begun)
        self.emit("engine ready", index=device, **facts)  # `device` is one of the facts: cpu, cuda

    def progressed(self) -> None:
        now, counts = time.monotonic(), self.summary.counts
        if self.summary.seconds_to_first_row is None and counts.inferred:
            self.summary.seconds_to_first_row = now - self._started
        self.summary.pace.note(now - self._begun, counts.rows)
        if self._progress:
            self._progress(counts, self._asks)

    def committed(self, tally: Tally) -> None:
        self.summary.tally += tally
        self.emit("rows saved", rows=tally.rows, done_rows=self.summary.tally.rows, of=self._rows)

    def engine_done(self, device: int, restarts: int, usage: Mapping[str, Any]) -> None:
        self.summary.devices[device].done(restarts, usage)
        devices = self.summary.devices.values()
        self.summary.engine["restarts"] = sum(each.restarts for each in devices)
        self.summary.engine["usage"] = {
            name: sum(each.usage.get(name, 0) for each in devices) for name in usage
        }
        self.summary.routing_seconds = time.monotonic() - self._begun

    def engine_lost(self, device: int, why: str) -> None:
        """It did not recover; the others go on."""
        self.emit("engine lost", level="warning", device=device, why=why)

    def assembled(self, proof: Proof, drift: dict[str, Any] | None) -> dict[str, Any]:
        """Returns what the manifest says of the run."""
        self.summary.drift = drift
        self.summary.seconds = time.monotonic() - self._started
        self.emit("assembled", rows=proof.rows, bytes=proof.bytes, sha256=proof.sha256)
        return self.summary.as_json()

    def _write_metrics(self, code: int) -> None:
        self.summary.seconds = time.monotonic() - self._started
        if self._outlets.metrics and self._checked:
            from batch.reporting.prometheus import write_metrics  # only a run that is scraped pays for it

            write_metrics(self._outlets.metrics, self.summary, code, time.time())
