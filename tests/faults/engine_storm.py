"""Two real engines, one of them killed again and again: `python -m tests.faults.engine_storm --kills 20 --seed 1`.

First one engine answers the backlog undisturbed, and two do. Then two share it, and at moments drawn from a seeded generator
one of them is killed, be it at work or at its start, until there were enough kills; a run that ends with exit code 75 is
resumed. What gets through must have every row once, the labels of one engine, and in float32 the bytes of two undisturbed
ones: on some processors an engine with half of the cores rounds the last bits otherwise.
"""

import argparse
import dataclasses
import os
import random
import signal
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch import run
from batch.errors import EngineError
from batch.job import Options
from batch.reporting.observer import Observer
from tests.faults.test_supervision import engines
from train.mini_base.requests import requests

PAUSE = (3.0, 15.0)  # seconds between two kills: a start takes ten


class Storm:
    def __init__(self, folder: Path, adapter: str, rows: int, chance: random.Random) -> None:
        self.chance, self.kills, self.runs = chance, 0, Counter[str]()
        self._next = 0.0
        texts = [request.text for request in islice(requests(random.Random(0)), rows)]
        source = folder / "in.parquet"
        pq.write_table(pa.table({"id": range(rows), "request": texts}), source)
        self.one = Options(str(source), str(folder / "one.parquet"), adapter, dtype="float32")
        self.two = Options(str(source), str(folder / "two.parquet"), adapter, dtype="float32", devices="2")
        self.calm = dataclasses.replace(self.two, output=str(folder / "calm.parquet"))
        run.run(self.one)
        run.run(self.calm)

    def get_through(self, kills: int) -> None:
        """Run until the output is there, with as many kills as there is time for."""
        Path(self.two.output).unlink(missing_ok=True)
        Path(f"{self.two.output}.manifest.json").unlink(missing_ok=True)
        while True:
            self._next = time.monotonic() + self.chance.uniform(*PAUSE)
            try:
                summary = run.run(self.two, Observer(progress=lambda *_: self._kill(kills)))
            except EngineError:
                self.runs["resumed"] += 1
                continue
            self.runs["through"] += 1
            self.runs["restarts"] += summary.engine["restarts"]
            return

    def _kill(self, kills: int) -> None:
        if self.kills < kills and time.monotonic() > self._next and (found := engines()):
            os.kill(self.chance.choice(found), signal.SIGKILL)
            self.kills += 1
            self._next = time.monotonic() + self.chance.uniform(*PAUSE)

    def check(self) -> None:
        one, two = (pq.read_table(options.output) for options in (self.one, self.two))
        assert two["id"].to_pylist() == pq.read_table(self.one.input)["id"].to_pylist(), "lost or doubled"
        assert set(two["status"].to_pylist()) == {"ok"}
        labels = [name for name in one.column_names if f"{name}_score" in one.column_names]
        assert two.select(labels).equals(one.select(labels)), "other labels than one engine's"
        assert Path(self.calm.output).read_bytes() == Path(self.two.output).read_bytes(), "other scores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--adapter", default="champion")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storm = Storm(Path(folder), options.adapter, options.rows, random.Random(options.seed))
        while storm.kills < options.kills:
            storm.get_through(options.kills)
            storm.check()
            print(f"{storm.kills} kills, {dict(storm.runs)}", flush=True)
    print(
        f"{storm.kills} kills of one of two engines: no row lost or doubled, the bytes of an undisturbed run"
    )


if __name__ == "__main__":
    main()
