"""What a cluster costs: `python -m tests.bench.cluster --adapter REF` on Ray nodes of this machine, engines made up.

Each engine waits, as for a GPU, so that a machine of few cores can have several: 64 requests every 0.1 s. Prints the
throughput of 1, 2 and 4 actors, the driver's processor time a receipt and the rows that are proved a second, medians of
some rounds; then on paper what these mean for 8 to 512 GPUs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from batch.engine.replay import FAULTS
from batch.storage.units import Plan
from tests.bench.backlog import ROOT, write_backlog

REQUESTS = 5  # of the store for a unit: two reads (receipt, attempt), three writes (attempt, part, receipt)
ACTORS = 1, 2, 4
WAIT, AT_ONCE = 0.1, 64  # seconds a step, requests in it


class Run(NamedTuple):
    rows_per_second: float  # from the first receipt on
    driver: float  # seconds of its processor time
    units: int
    proof: float  # seconds from the last receipt to the output


def run(source: Path, output: Path, rows: int, *options: str) -> Run:
    line = [sys.executable, "-m", "batch", str(source), str(output), "--engine", "replay", "--log-json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*line, *options, "--max-num-seqs", str(AT_ONCE)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    events = [json.loads(each) for each in done.stderr.splitlines() if each.startswith("{")]
    committed = [stamp(each) for each in events if each["event"] == "rows saved"]
    behind = rows - next(each["rows"] for each in events if each["event"] == "rows saved")
    assembled = next(stamp(each) for each in events if each["event"] == "assembled")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    speed = behind / (committed[-1] - committed[0]) if behind else 0.0
    return Run(speed, cpu, len(committed), assembled - committed[-1])


def stamp(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def on_paper(receipt: float, proved: float, rate: float, rows: int) -> None:
    """Where it would end: `receipt` seconds of the driver each, rows `proved` a second, `rate` rows/s a GPU."""
    unit = Plan.of(rows).unit_rows
    print(f"{rows} rows, {rate:g} rows/s a GPU, units of {unit} rows:")
    for gpus in (8, 16, 32, 64, 128, 256, 512):
        units = gpus * rate / unit
        print(
            f"  {gpus} GPUs: {rows / gpus / rate / 3600:.2f} h; {units:.3f} units/s, driver {units * receipt:.2%} busy, "
            f"{units * REQUESTS:.2f} store requests/s, proof {rows / proved:.0f} s ({rows / proved / (rows / gpus / rate):.1%})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", default="champion")
    parser.add_argument("--rows", type=int, default=12_288)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        faults = Path(folder, "faults.json")
        faults.write_text(json.dumps({"delay": WAIT}))
        os.environ[FAULTS] = str(faults)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 8,
                "num_gpus": 4,
                "object_store_memory": 100 << 20,
                "include_dashboard": False,
            },
        )
        source, small = Path(folder, "in.parquet"), Path(folder, "small.parquet")
        write_backlog(source, options.rows)
        write_backlog(small, 1024)
        ray = ["--adapter", options.adapter, "--ray", cluster.address, "--devices"]
        runs: dict[str, list[Run]] = {}
        for _ in range(options.rounds):
            jobs = {f"{count} actors": (source, "out.parquet", count) for count in ACTORS}
            jobs |= {"a folder": (source, "out", 4), "one unit": (small, "out.parquet", 1)}
            for name, (backlog, output, count) in jobs.items():
                rows = 1024 if backlog == small else options.rows
                done = run(backlog, Path(folder, output), rows, *ray, str(count), "--fresh")
                runs.setdefault(name, []).append(done)
                print(f"{name}: {done}", flush=True)
        cluster.shutdown()
    of = {name: Run(*map(median, zip(*found, strict=True))) for name, found in runs.items()}
    for count in ACTORS:
        print(f"{count} actors: {of[f'{count} actors'].rows_per_second:.0f} rows/s")
    last, first = of["4 actors"], of["one unit"]
    receipt = (last.driver - first.driver) / (last.units - first.units)
    whole, parts = options.rows / last.proof, options.rows / of["a folder"].proof
    print(f"driver {receipt * 1000:.1f} ms of processor time a receipt")
    print(f"{whole:.0f} rows/s assembled and proved, {parts:.0f} rows/s proved as parts of a folder")
    for rate, rows in ((50.0, 10_000_000), (500.0, 100_000_000)):
        on_paper(receipt, parts, rate, rows)


if __name__ == "__main__":
    main()
