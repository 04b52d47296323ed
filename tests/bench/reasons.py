"""What free text costs: the same requests with `--reasons all`, `human` and `none`, in one warm engine.

    python -m tests.bench.reasons --rows 500

Each mode answers all requests, in turn, `--rounds` times. Prints rows/s and the ratio of medians, and compares labels
and scores with those of `all`: they must be the same, bit for bit in float32.
"""

import itertools
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.engine.supervisor import Supervisor
from batch.scoring.adapters import engine_spec, lane_of, spec_of
from batch.scoring.lane import ScoredRow
from batch.scoring.router import Requests, Router
from train.mini_base.requests import requests

MODES = ("all", "none", "human")


def route(engine: Supervisor, bundle: Bundle, texts: list[str], mode: str) -> tuple[list[ScoredRow], float]:
    """The rows, and seconds."""
    engine.load(spec_of(bundle, mode))
    lane = lane_of(bundle, mode)
    began = time.monotonic()
    (rows,) = Router(engine).route([Requests.to(lane, texts)])
    return rows, time.monotonic() - began


def labels(rows: list[ScoredRow], bundle: Bundle) -> list[Any]:
    """All of a row but its texts."""
    names = [field.name for field in bundle.contract.scored_fields]
    return [
        (row.error_code, row.answer and [row.answer[name] for name in names], row.scores, row.violations)
        for row in rows
    ]


@click.command()
@click.option("--rows", default=500, show_default=True)
@click.option("--rounds", default=2, show_default=True)
@click.option("--adapter", default="champion", show_default=True)
@click.option("--dtype", help="float32 for answers that do not depend on what runs beside them")
@click.option("--out", type=click.Path(path_type=Path), default=Path("reasons.json"), show_default=True)
def main(rows: int, rounds: int, adapter: str, dtype: str | None, out: Path) -> None:
    bundle = Bundle.open(Registry().resolve(adapter))
    found = (request.text for request in requests(random.Random(0)))
    texts = list(dict.fromkeys(itertools.islice(found, 3 * rows)))[:rows]
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    same: dict[str, bool] = {}
    with Supervisor(engine_spec(bundle.resolve_base(), [bundle], dtype=dtype)) as engine:
        route(engine, bundle, texts[:64], "all")
        for _ in range(rounds):
            wanted = None
            for mode in MODES:
                answered, seconds = route(engine, bundle, texts, mode)
                rates[mode].append(len(texts) / seconds)
                wanted = wanted or labels(answered, bundle)
                same[mode] = same.get(mode, True) and labels(answered, bundle) == wanted
        facts = engine.facts
    out.write_text(json.dumps({"rows/s": rates, "same": same, "engine": facts}, indent=2))
    console = Console(width=120)
    for mode in MODES:
        ratio = statistics.median(rates[mode]) / statistics.median(rates["all"])
        shown = ", ".join(f"{rate:.1f}" for rate in rates[mode])
        console.print(
            f"{mode:6} {shown} rows/s, {ratio:.2f} of all; labels and scores the same: {same[mode]}"
        )


if __name__ == "__main__":
    main()
