"""`--report`: one HTML file about a finished output, with no script, no network and no request text in it.

It is made from the output's manifest; the output itself is read only for the ids of its lowest-scored rows.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from batch.errors import StorageError
from batch.reporting import charts
from batch.reporting.drift import ALARM, WARN
from batch.reporting.page import render_page
from batch.reporting.tally import SCORE_BINS, Tally
from batch.storage.location import Location, write_file
from batch.storage.manifest import manifest_location, output_files, read_manifest
from batch.storage.parquet import ParquetSource
from batch.storage.schema import readable, taken

TEMPLATE = Path(__file__).with_name("report.html")
LOWEST = 25  # rows listed
BARS = 20  # of the score histogram
READ_ROWS = 65_536


def write_report(path: Path, output: str) -> None:
    """Write the report of the finished `output` to `path`, whole. Raises `StorageError`, `InputError`."""
    manifest = read_manifest(manifest_location(output))
    if manifest is None:
        raise StorageError(f"{output} has no manifest to report on; run again")
    page = render_page(
        TEMPLATE,
        {"number": lambda value: f"{value:,}", "percent": lambda share: f"{share:.1%}"},
        output=Location.of(output).name,
        job=manifest["job"],
        run=manifest["run"],
        proof=manifest["output"],
        drift=manifest.get("drift"),
        drift_bounds=(WARN, ALARM),
        charts=charts,
        **_facts(manifest),
        thresholds=sorted(set(manifest["run"].get("thresholds", {}).values())),
        lowest=lowest(
            output_files(output, manifest), manifest["job"], list(manifest["run"]["tally"]["scores"])
        ),
    )
    write_file(Location.of(path), page.encode())


def lowest(
    files: Sequence[Location], job: Mapping[str, Any], scores: Sequence[str], count: int = LOWEST
) -> pl.DataFrame:
    """The `count` answered rows of the least score, least first: their id and `scores`, `score` first."""
    prefix = job["prefix"]
    scores = ["score", *(name for name in scores if name != "score")]
    wanted = [job["id_column"], *(prefix + name for name in scores)]
    found: pl.DataFrame | None = None
    sources = map(ParquetSource.open, files)
    for batch in (batch for source in sources for batch in source.batches(size=READ_ROWS, columns=wanted)):
        rows = _lowest(pl.DataFrame(batch.select(wanted[1:])).with_row_index("row"), f"{prefix}score", count)
        ids = readable(taken(batch.column(wanted[0]), rows["row"].to_arrow()))
        rows = rows.drop("row").insert_column(0, pl.Series(wanted[0], map(str, ids), pl.String))
        found = rows if found is None else _lowest(pl.concat([found, rows]), f"{prefix}score", count)
    names = dict(zip(wanted, ["id", *(name.removesuffix("_score") for name in scores)], strict=True))
    return pl.DataFrame(schema=list(names.values())) if found is None else found.rename(names)


def _lowest(rows: pl.DataFrame, score: str, count: int) -> pl.DataFrame:
    """Ties go by position, so the list does not change from one look to the next."""
    return rows.drop_nulls(score).sort(score, maintain_order=True).head(count)


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    tally = Tally.from_json(manifest["run"]["tally"])
    previous = manifest.get("drift") and Tally.from_json(manifest["drift"]["previous"]["tally"])
    return {
        "tally": tally,
        "mixes": {field: _mix(tally, previous, field) for field in tally.values},
        "histogram": _histogram(tally),
        "pace": _pace(manifest["run"].get("pace", {})),
    }


def _mix(tally: Tally, previous: Tally | None, field: str) -> pl.DataFrame:
    """A row for each value of a field: `value`, `rows`, `share`, and `before`, its share in the earlier run
    (or null).
    """
    counts, old = tally.values[field], previous.values.get(field) if previous else None
    values = [value for value, _ in counts.most_common()] + sorted(set(old or {}) - set(counts))
    frame = pl.DataFrame(
        {"value": values, "rows": [counts[value] for value in values]},
        schema={"value": pl.String, "rows": pl.Int64},
    )
    total = old.total() if old else 0
    before = pl.Series(
        "before", [old[value] / total if old and total else None for value in values], dtype=pl.Float64
    )
    return frame.with_columns((pl.col("rows") / max(counts.total(), 1)).alias("share"), before)


def _histogram(tally: Tally) -> tuple[list[int], list[str]]:
    bins: Mapping[str, int] = tally.scores.get("score", {})
    width = len(SCORE_BINS) // BARS
    groups = [SCORE_BINS[start : start + width] for start in range(0, len(SCORE_BINS), width)]
    return [sum(bins.get(name, 0) for name in group) for group in groups], [
        f"from {group[0]}" for group in groups
    ]


def _pace(points: Mapping[str, int]) -> tuple[list[float], list[float]] | None:
    """Times in seconds and the rows a second between them, None where the run was too short to tell."""
    reached = {0.0: 0, **{float(seconds): rows for seconds, rows in points.items()}}
    if len(reached) < 3:
        return None
    pairs = itertools.pairwise(reached.items())
    return list(reached), [
        (rows - rows_before) / (at - before) for (before, rows_before), (at, rows) in pairs
    ]
