"""Memory of `--watch` over many files: `python -m tests.faults.watch_memory --files 2000`.

The parent's resident memory is read from the kernel after each file; the last reading may be 50 MiB above that after the
hundredth. Before the cycle in `Lane` was broken a file cost 7.7 MB that never came back.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ALLOWED = 50 << 10  # KiB


def resident(pid: int) -> int:
    """KiB."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def watch(folder: Path, files: int, rows: int = 20) -> list[int]:
    """The parent's resident KiB after each file, on the replay engine and the champion of `$BATCH_ROUTE_ADAPTERS`."""
    inbox, outbox = folder / "in", folder / "out"
    for each in (inbox, outbox):
        each.mkdir(parents=True)
    for file in range(files):
        texts = [f"file {file}, request {row}: a dashboard of sales" for row in range(rows)]
        pq.write_table(pa.table({"id": range(rows), "request": texts}), inbox / f"{file:05d}.parquet")
    command = [sys.executable, "-m", "batch", str(inbox), str(outbox), "--watch", "--engine", "replay"]
    seen: list[int] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if ".parquet: " in line:
                assert f"{rows} rows" in line, line
                seen.append(resident(run.pid))
                if len(seen) == files:
                    run.send_signal(signal.SIGTERM)
    assert run.returncode == 143 and len(seen) == files
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = watch(Path(folder), options.files)
    early, last = seen[min(99, len(seen) // 3)], seen[-1]
    print(
        f"{options.files} files: {early / 1024:.1f} MiB after the hundredth, {last / 1024:.1f} MiB after the last"
    )
    assert last - early <= ALLOWED, "memory grows from file to file"


if __name__ == "__main__":
    main()
