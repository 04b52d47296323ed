"""`--dry-run`: everything that is known about a job before an engine starts."""

import functools
from typing import Any

from rich.console import Console

from batch.job import Job
from batch.reporting.summary import show_input
from batch.scoring.scorer import read_texts
from batch.storage.manifest import finished, manifest_location, read_manifest

SAMPLE = 1000  # requests that are tokenised
RATES = (10, 50, 500)  # rows/s to choose from where no earlier run tells


def show_plan(job: Job, console: Console) -> None:
    """Print rows, tokens and the estimated time of a checked job."""
    bundles = job.adapters.served
    renderer, sample = bundles[0].renderer, []
    for batch in job.backlog.batches(size=SAMPLE, stop_row=job.rows):
        sample += [text for text in read_texts(batch, job.options.text_column)[0] if text]
        if len(sample) >= SAMPLE:
            break
    say = functools.partial(console.print, soft_wrap=True)
    lengths = [len(ids) for ids in renderer.encode_requests(sample)]
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    fixed = len(renderer.prefix_ids) + len(renderer.suffix_ids)
    say(f"input      {job.backlog.source}: {job.rows} rows to route; ids unique, pages readable")
    show_input(job.backlog.schema.names, (*job.backlog.notes, *job.adapters.notes), console)
    for bundle in bundles:
        say(f"adapter    {bundle.digest[:12]} ({bundle.contract.name}) on base {bundle.base['ref']}")
    if unknown := [name for name, bundle in job.adapters.named.items() if bundle is None]:
        say(
            f"           {len(unknown)} names in {job.adapters.column} stand for no adapter that this "
            "run can serve: their rows become errors"
        )
    say(
        f"prompt     {fixed} tokens of instructions, cached, and {mean:.0f} a request (mean of "
        f"{len(lengths)})"
    )
    say(
        f"tokens     about {mean * job.rows:.0f} of requests, at most {renderer.max_answer_tokens} "
        "of answer a row"
    )
    say(f"time       {_time(job)}")


def _time(job: Job) -> str:
    if not job.options.fresh and finished(job.options.output, job.facts):
        return f"none: {job.options.output} is this job's finished output already"
    earlier = read_manifest(manifest_location(job.options.output))
    if earlier and (rate := _rate(earlier, job)):
        return (
            f"about {_duration(job.rows, rate)} at the {rate:.1f} rows/s of the run that made "
            f"{job.options.output}, and the start-up"
        )
    guesses = ", ".join(f"{_duration(job.rows, rate)} at {rate} rows/s" for rate in RATES)
    return f"{guesses}, and the start-up\n           (the next time, this machine's own rate is known)"


def _rate(manifest: dict[str, Any], job: Job) -> float | None:
    """Rows a second of an earlier run on the same kind of engine."""
    rate = manifest.get("run", {}).get("rows_per_second")
    return (
        rate
        if manifest["job"].get("engine") == job.options.engine and isinstance(rate, int | float) and rate > 0
        else None
    )


def _duration(rows: int, rate: float) -> str:
    """Rounded as one would say it: 50 s, 12 min, 3.5 h."""
    seconds = rows / rate
    if seconds < 90:
        return f"{max(1, round(seconds))} s" if rows else "0 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
