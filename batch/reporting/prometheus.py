"""Facts of the last run as a Prometheus textfile, for node_exporter's textfile collector.

Text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats). Every sample has the label `task`,
the file's name without its suffix: files of several nightly jobs can lie in one folder.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from batch.reporting.summary import Summary
from batch.scoring.lane import ERROR_MESSAGES
from batch.storage.location import Location, write_file

LAST_SUCCESS = "batch_route_last_success_timestamp_seconds"

Samples = list[tuple[Mapping[str, str], float | None]]  # labels, value; None leaves the sample out


def write_metrics(path: Path, summary: Summary, exit_code: int, now: float) -> None:
    """Replace the textfile at `path`, whole. `now` (seconds since 1970) is the last success only if
    `exit_code` is 0.

    Otherwise the time in the file that is there stays, 0 for never. Raises `StorageError`.
    """
    success = now if exit_code == 0 else _last_success(path)
    task = {"task": path.name.split(".")[0]}
    lines = []
    for name, help_text, samples in _families(summary, exit_code, now, success):
        kept = [(labels, value) for labels, value in samples if value is not None]
        if kept:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
            lines += [f"{name}{{{_labels({**task, **labels})}}} {value!r}" for labels, value in kept]
    write_file(Location.of(path), ("\n".join(lines) + "\n").encode())


def _families(
    summary: Summary, exit_code: int, now: float, success: float
) -> Iterator[tuple[str, str, Samples]]:
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
    # what changes is no label
    served = {name: value for name, value in summary.engine.items() if name != "restarts"}
    facts = {name: str(value) for name, value in served.items() if type(value) in (str, int, float)}
    yield "batch_route_engine_info", "What served the last run.", [(facts, 1)] if facts else []


def _labels(labels: Mapping[str, str]) -> str:
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        for name, value in labels.items()
    }
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())


def _last_success(path: Path) -> float:
    try:
        found = re.search(rf"^{LAST_SUCCESS}{{.*}} (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        return float(found[1]) if found else 0.0
    except (OSError, ValueError):
        return 0.0
