"""Damaged files end in one line, or in rows: no crash, no traceback, no hang, bounded memory.

With page checksums no damage gives other values; without, some does, which nothing can notice. `python -m
tests.faults.test_damage 600` damages as many files in each way, half of them with page
checksums, and says what came of them.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import BatchRouteError
from batch.storage.backlog import Backlog
from batch.storage.guard import guarded

ROWS = 600
MOST_SECONDS = 30.0  # for one file, on a busy machine
MOST_BYTES = 1 << 30
DAMAGE = {"flips": 120, "truncations": 60, "splices": 60, "footer flips": 100}  # more in `make faults`


def good() -> pa.Table:
    return pa.table(
        {
            "id": [f"r{row}" for row in range(ROWS)],
            "request": [f"request {row}" for row in range(ROWS)],
            "team": pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode(),
            "tags": [["x", "y"]] * ROWS,
            "s": [{"a": 1, "b": "x"}] * ROWS,
            "at": pa.array(range(ROWS), pa.timestamp("us")),
        }
    )


def damaged(data: bytes, how: str, chance: random.Random) -> bytes:
    spoilt = bytearray(data)
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little") if how == "footer flips" else 0
    match how:
        case "flips" | "footer flips":
            spoilt[chance.randrange(start, len(data))] ^= 1 << chance.randrange(8)
        case "truncations":
            del spoilt[chance.randrange(len(data)) :]
        case "splices":
            to, start, size = (
                chance.randrange(len(data)),
                chance.randrange(len(data)),
                chance.randrange(1, 2000),
            )
            spoilt[to : to + size] = data[start : start + size]
    return bytes(spoilt)


def outcome(path: Path, expected: pa.Table) -> str:
    """Read as a run reads: `refused`, `right` or `wrong`."""
    try:
        backlog = Backlog.open(str(path), "id", "request")
        backlog.check_ids()
        read = pa.Table.from_batches(backlog.batches(), backlog.schema)
    except BatchRouteError as error:
        assert "\n" not in str(error) and "; " in str(error)
        return "refused"
    try:
        return "right" if read.cast(expected.schema).equals(expected) else "wrong"
    except (pa.ArrowException, ValueError):  # other names or types, which the summary shows
        return "wrong"


def child_bytes() -> int:
    """The most memory that the reader's process ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def trial(folder: Path, how: str, count: int, checksums: bool) -> Counter[str]:
    path = folder / "in.parquet"
    pq.write_table(good(), path, row_group_size=200, write_page_checksum=checksums)
    data, chance, seen = path.read_bytes(), random.Random(how), Counter[str]()
    assert outcome(path, good()) == "right"
    for _ in range(count):
        path.write_bytes(damaged(data, how, chance))
        began = time.monotonic()
        seen[outcome(path, good())] += 1
        assert time.monotonic() - began < MOST_SECONDS
        assert guarded(child_bytes, what="memory") < MOST_BYTES
    return seen


@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "none"])
@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_refused_or_harmless(tmp_path: Path, how: str, checksums: bool) -> None:
    seen = trial(tmp_path, how, DAMAGE[how], checksums)
    assert seen["refused"] > DAMAGE[how] / 4
    if how == "truncations" or (checksums and how != "footer flips"):
        assert not seen["wrong"]


if __name__ == "__main__":
    from tests.faults import test_damage  # by the name that the reader's process knows it by

    for each in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            for how in DAMAGE:
                seen = test_damage.trial(Path(folder), how, int(sys.argv[1]) // 2, each)
                print(how, "with" if each else "without", "page checksums:", dict(seen))
