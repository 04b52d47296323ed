"""What a warm engine costs: an adapter swap, and a row whatever the number of rows.

    python -m tests.bench.warm --rows 1000,20000

Swaps two adapters in one engine (median of ten loads, each proved on the canary), then routes distinct rows in alternation of
sizes and compares the cost of a row once the engine is ready.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.engine.process import EngineProcess
from batch.scoring.adapters import engine_spec, spec_of
from tests.bench.throughput import backlog
from tests.conftest import make_bundle

SWAPS = 10


def swaps(champion: Bundle, folder: Path) -> tuple[list[float], bool]:
    """Seconds of each load of an adapter that the engine has not seen, and whether its process stayed the same."""
    base = champion.resolve_base()
    others = [
        make_bundle(base, Contract.from_dict(champion.contract.raw), folder / str(i), scale=0.02 + i / 100)
        for i in range(SWAPS)
    ]
    seconds = []
    with EngineProcess(engine_spec(base, [champion])) as engine:
        engine.load(spec_of(champion))
        pid = engine.pid
        for bundle in others:
            began = time.monotonic()
            engine.load(spec_of(bundle))
            seconds.append(time.monotonic() - began)
        return seconds, engine.pid == pid


@click.command()
@click.option("--rows", default="1000,20000", show_default=True, help="sizes to compare, separated by commas")
@click.option("--rounds", default=1, show_default=True)
def main(rows: str, rounds: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    try:
        champion = Bundle.open(Registry().resolve("champion"))
        seconds, same = swaps(champion, folder)
        print(
            f"adapter swap: median {statistics.median(seconds):.3f} s, slowest {max(seconds):.3f} s, same process: {same}",
            flush=True,
        )
        cost: dict[int, list[float]] = {}
        for number in range(rounds):
            for size in map(int, rows.split(",")):
                source, output = (
                    backlog(folder / f"{size}.parquet", size, seed=number),
                    folder / "out.parquet",
                )
                subprocess.run(
                    [Path(sys.executable).with_name("batch-route"), source, output, "--fresh"],
                    check=True,
                    capture_output=True,
                )
                run = json.loads(Path(f"{output}.manifest.json").read_text())["run"]
                cost.setdefault(size, []).append(1000 / run["rows_per_second"])
                print(
                    f"{size} rows: {cost[size][-1]:.2f} ms a row, engine idle {run['engine']['usage']['idle_seconds']:.2f} s",
                    flush=True,
                )
        medians = {size: statistics.median(values) for size, values in cost.items()}
        first = next(iter(medians.values()))
        print(
            "against the first: "
            + ", ".join(f"{size}: {value / first:.3f}" for size, value in medians.items())
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
