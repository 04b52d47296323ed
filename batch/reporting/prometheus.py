"""Facts of the last run as a Prometheus textfile, for node_exporter's textfile collector.

Text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats). Every sample has the label `task`,
the file's name without its suffix: files of several nightly jobs can lie in one folder.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from batch.reporting.summary import Summary
from batch.scoring.lane import ERROR_MESSAGES
from batch.storage.location import Location, write_file

LAST_SUCCESS = "batch_route_last_success_timestamp_seconds"

Samples = list[tuple[Mapping[str, str], float | None]]  # labels, value; None leaves the sample out
Family = tuple[str, str, Samples]  # name, help, samples


def write_metrics(path: Path, summary: Summary, exit_code: int, now: float) -> None:
    """Replace the textfile at `path`, whole. `now` (seconds since 1970) is the last success only if
    `exit_code` is 0.

    Otherwise the time in the file that is there stays, 0 for never. Raises `StorageError`.
    """
    success = now if exit_code == 0 else _last_success(path)
    write_textfile(path, _families(summary, exit_code, now, success))


def write_textfile(path: Path, families: Iterable[Family]) -> None:
    """Replace the textfile at `path`, whole, by gauges. Raises `StorageError`."""
    registry = CollectorRegistry()
    registry.register(_Gauges(path.name.split(".")[0], list(families)))
    write_file(Location.of(path), generate_latest(registry))


class _Gauges:
    """What a registry collects: the families that have a sample."""

    def __init__(self, task: str, families: list[Family]) -> None:
        self._task, self._families = task, families

    def collect(self) -> Iterator[Metric]:
        for name, meaning, samples in self._families:
            gauge = GaugeMetricFamily(name, meaning)
            for labels, value in samples:
                if value is not None:
                    gauge.add_sample(name, {"task": self._task, **labels}, value)
            if gauge.samples:
                yield gauge


def _families(summary: Summary, exit_code: int, now: float, success: float) -> Iterator[Family]:
    tally, counts = summary.tally, summary.counts
    values: list[tuple[str, str, float | None]] = [
        (LAST_SUCCESS, "End of the last run that exited with 0; 0 for never.", success),
        ("batch_route_last_run_timestamp_seconds", "End of the last run.", now),
        ("batch_route_exit_code", "Exit code of the last run.", exit_code),
        ("batch_route_seconds", "Duration of the last run.", summary.seconds),
        (
            "batch_route_seconds_to_first_row",
            "From the start to the first scored row.",
            summary.seconds_to_first_row,
        ),
        ("batch_route_rows", "Rows that are finished: in the output, or kept for the next run.", tally.rows),
        ("batch_route_resumed_rows", "Rows that an earlier run had finished.", summary.resumed_rows),
        (
            "batch_route_deduplicated_rows",
            "Rows answered like another of the same text.",
            counts.deduplicated,
        ),
        ("batch_route_cached_rows", "Rows answered from the cache of earlier nights.", counts.cached),
        (
            "batch_route_engine_restarts",
            "Times that the engine died and was started again.",
            summary.engine.get("restarts"),
        ),
        (
            "batch_route_engine_idle_seconds",
            "Time that the engine had no request, once it had begun.",
            summary.engine.get("usage", {}).get("idle_seconds"),
        ),
        ("batch_route_rows_per_second", "Rows routed a second, without start-up.", summary.rows_per_second),
        ("batch_route_mean_score", "Mean score of the answered rows.", tally.mean_score),
        (
            "batch_route_prefix_cache_hit_ratio",
            "Share of prompt tokens that the engine had in its cache.",
            counts.cache_hit_rate,
        ),
    ]
    for name, text, value in values:
        yield name, text, [({}, value)]
    yield (
        "batch_route_error_rows",
        "Rows in error, by code.",
        [({"code": code}, tally.errors[code]) for code in ERROR_MESSAGES],
    )
    yield (
        "batch_route_triage_rows",
        "Rows that need no person (auto) and rows for one (human).",
        [({"triage": name}, tally.triage[name]) for name in ("auto", "human")],
    )
    rules: Samples = [({"rule": rule}, rows) for rule, rows in sorted(tally.violations.items())]
    yield "batch_route_rule_violations", "Answers that break a rule of the contract.", rules
    measures = (summary.drift or {}).get("measures", [])
    drift: Samples = [({"field": m["field"], "of": m["of"]}, m["psi"]) for m in measures]
    yield (
        "batch_route_drift_psi",
        "Population stability index against the earlier run: warn 0.10, alarm 0.25.",
        drift,
    )
    # a label must not change from run to run
    served = {name: value for name, value in summary.engine.items() if name != "restarts"}
    facts = {name: str(value) for name, value in served.items() if type(value) in (str, int, float)}
    yield "batch_route_engine_info", "What served the last run.", [(facts, 1)] if facts else []


def _last_success(path: Path) -> float:
    """What an earlier run wrote; 0 where the file is not there or is not one of ours."""
    try:
        families = text_string_to_metric_families(path.read_text(encoding="utf-8"))
        return next((family.samples[0].value for family in families if family.name == LAST_SUCCESS), 0.0)
    except (OSError, ValueError, IndexError):
        return 0.0
