"""Two real engines on a Ray cluster beside one of this machine: `python -m tests.bench.ray_engines --adapter champion`.

A cluster of two nodes on this machine, each with one core of it; in float32, where a row's numbers do not depend on what runs
beside it, so that the outputs must have the same bytes. Exits with 1 where they have not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.backlog import ROOT, write_backlog


def route(source: Path, output: Path, *options: str) -> tuple[float, str]:
    """Seconds that a run takes, engines' start included, and its events."""
    line = [
        sys.executable,
        "-m",
        "batch",
        str(source),
        str(output),
        "--dtype",
        "float32",
        "--log-json",
        *options,
    ]
    began = time.monotonic()
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - began, done.stderr


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapter", default="champion")
    parser.add_argument("--rows", type=int, default=2048, help="1,024 make a unit")
    given = parser.parse_args()
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_prestart_worker_first_driver="0")
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 << 20, "include_dashboard": False, "num_gpus": 0}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "in.parquet"
        write_backlog(source, given.rows)
        alone, _ = route(source, folder / "one.parquet", "--adapter", given.adapter)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=2, **small)
            options = (
                "--ray",
                cluster.address,
                "--devices",
                "2",
                "--threads",
                "1",
                "--adapter",
                given.adapter,
            )
            together, told = route(source, folder / "ray.parquet", *options)
        finally:
            cluster.shutdown()
        same = (folder / "one.parquet").read_bytes() == (folder / "ray.parquet").read_bytes()
    events = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    actors = next(event["actors"] for event in events if event["event"] == "cluster ready")
    print(
        f"{given.rows} rows: {alone:.1f} s with one engine, {together:.1f} s with {actors} on Ray; the same bytes: {same}"
    )
    sys.exit(not same)


if __name__ == "__main__":
    main()
