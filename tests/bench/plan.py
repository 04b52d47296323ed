"""Plan and proof at any size: `python -m tests.bench.plan --rows 500000000`.

Cuts a backlog of so many rows, leaves a receipt for each unit and proves all of them, in a process of its own, by the code
of a run. Synthetic is only what the parts hold: every unit's name leads to the same two files of ids (the last unit is
shorter), so the chain of ids is that of all rows, read back and hashed one after the other. Beside it the same for a
tenth of the rows. Prints seconds and peak memory; exits with 1 where more than `MOST_BYTES` a unit are held.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from batch.reporting.tally import Tally
from batch.storage.hashing import IdDigest
from batch.storage.location import Location
from batch.storage.output import prove, write_rows
from batch.storage.receipts import Receipt, Receipts, part_name
from batch.storage.store import LocalStore
from batch.storage.units import Plan, Unit

MOST_BYTES = 16 << 10  # a unit: its receipt, with its counts and what the canary showed
SCHEMA = pa.schema([("id", pa.int64())])
ENGINE = {
    "engine": "vllm",
    "device": "cuda",
    "canary": {"adapter_moves_logprob_by": 0.5, "decoding": {"top_k": 0}},
}
BINS = Counter({str(part / 10): 9 for part in range(10)})
TALLY = Tally(scores={f"field_{number}_score": BINS for number in range(5)}).as_json()


class SameParts(LocalStore):
    """Receipts as they are; behind the name of every part lies one of two files."""

    def __init__(self, root: Path, last: Unit) -> None:
        super().__init__(root)
        self._last = f"/{last.index:05d}-"

    def location(self, name: str) -> Location:
        return super().location("last.parquet" if self._last in name else "full.parquet")


def simulate(rows: int, folder: Path) -> dict[str, float]:
    plan = Plan.of(rows)
    last = plan[len(plan) - 1]
    store, ids = SameParts(folder, last), IdDigest()
    numbers = {unit.rows: pa.array(np.arange(unit.rows)) for unit in (plan[0], last)}
    found = {}
    for unit in (plan[0], last):
        where = store.location(part_name(unit.index, "0" * 16))
        write_rows(where, [pa.RecordBatch.from_arrays([numbers[unit.rows]], schema=SCHEMA)], SCHEMA)
        found[unit.rows] = prove(where)
    began = time.monotonic()
    receipts = Receipts.open(store, plan)
    for unit in plan:
        seen, attempt = found[unit.rows], f"{unit.index:016x}"
        name = part_name(unit.index, attempt)
        receipts.add(
            Receipt(unit.index, unit.start, unit.rows, seen.ids, name, seen.sha256, seen.bytes, TALLY, ENGINE, attempt)
        )  # fmt: skip
        ids.update(numbers[unit.rows])
    planned = time.monotonic()
    resumed = Receipts.open(store, plan)
    opened = time.monotonic()
    proof = resumed.prove("f" * 64, "id", (rows, ids.hexdigest()))
    assert proof.rows == rows and len(proof.parts or ()) == len(plan)
    return {
        "rows": rows,
        "units": len(plan),
        "receipts s": planned - began,
        "resumed s": opened - planned,
        "proof s": time.monotonic() - opened,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000_000)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(simulate(options.rows, Path(options.folder))))
        return
    told = []
    for rows in (options.rows // 10, options.rows):
        with tempfile.TemporaryDirectory() as folder:
            line = [sys.executable, "-m", "tests.bench.plan", "--rows", str(rows), "--folder", folder]
            done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
        told.append(json.loads(done.stdout))
        print(", ".join(f"{name} {value:,.0f}" for name, value in told[-1].items()), flush=True)
    more = (told[1]["peak MiB"] - told[0]["peak MiB"]) * (1 << 20) / (told[1]["units"] - told[0]["units"])
    print(f"{more:,.0f} bytes a unit")
    raise SystemExit(more > MOST_BYTES)


if __name__ == "__main__":
    main()
