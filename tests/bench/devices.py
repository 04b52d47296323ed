"""One engine on all cores against several that share them: `python -m tests.bench.devices --rows 1000 --rounds 3`.

The same distinct requests through `batch-route --devices 1` and `--devices 2`, in turn. Prints rows/s while routing, as the
manifest has it, and processor seconds of the whole run with its engines.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from tests.bench.throughput import backlog

ROOT = Path(__file__).parents[2]


def route(source: Path, output: Path, adapter: str, devices: int) -> tuple[float, float]:
    """Rows/s, and processor seconds."""
    line = [sys.executable, "-m", "batch", str(source), str(output), "--adapter", adapter, "--fresh"]
    job = subprocess.Popen([*line, "--devices", str(devices)], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(job.pid, 0)
    if status:
        raise SystemExit(f"the run with {devices} engines failed")
    told = json.loads(Path(f"{output}.manifest.json").read_text())["run"]
    return told["rows_per_second"], used.ru_utime + used.ru_stime


@click.command()
@click.option("--rows", default=1000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--devices", default="1,2", show_default=True)
@click.option("--adapter", default="champion", show_default=True)
def main(rows: int, rounds: int, devices: str, adapter: str) -> None:
    rates: dict[int, list[float]] = {int(count): [] for count in devices.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        source = backlog(Path(folder, "in.parquet"), rows)
        for number in range(rounds):
            for count, found in rates.items():
                output = Path(folder, f"{number}-{count}.parquet")
                rate, seconds = route(source, output, adapter, count)
                found.append(rate)
                click.echo(f"{count} engines: {rate:.1f} rows/s, {seconds:.1f} s of processor time")
    for count, found in rates.items():
        click.echo(f"{count} engines: median {statistics.median(found):.1f} rows/s")


if __name__ == "__main__":
    main()
