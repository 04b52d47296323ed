"""How fast the parent reads, tokenises, scores and writes: `python -m tests.bench.backlog --rows 2000000`.

Routes a backlog of different texts on the replay engine, which answers at once, so all else is what takes time. The
parent's peak memory is compared with that for 20,000 rows. Exits with 1 under 20,000 rows/s or above 64 MB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
SMALL = 20_000
LEAST_ROWS_PER_SECOND = 20_000
MOST_BYTES = 64 << 20
CHUNK = 50_000


def write_backlog(path: Path, rows: int) -> None:
    """`rows` different texts: the sample backlog's, each with a number of its own."""
    texts = [
        text
        for text in pq.read_table(ROOT / "data/requests.parquet")["request"].to_pylist()
        if text and text.strip()
    ]
    schema = pa.schema([("id", pa.int64()), ("request", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, CHUNK):
            numbers = range(start, min(rows, start + CHUNK))
            writer.write_table(
                pa.table(
                    {"id": numbers, "request": [f"{texts[n % len(texts)]} ({n})" for n in numbers]}, schema
                )
            )


def route(source: Path, output: Path, adapter: str) -> tuple[float, int, dict[str, float]]:
    """Seconds, the parent's peak memory in bytes, and what the manifest says of the run."""
    command = [
        sys.executable,
        "-m",
        "batch",
        str(source),
        str(output),
        "--adapter",
        adapter,
        "--engine",
        "replay",
    ]
    started, peak = time.monotonic(), 0
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    status = Path(f"/proc/{job.pid}/status")
    while job.poll() is None:
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        peak = max(peak, *(int(kilobytes) * 1024 for kilobytes in peaks), 0)
        time.sleep(0.05)
    seconds = time.monotonic() - started
    if job.returncode:
        raise SystemExit(f"the run ended with {job.returncode}")
    return seconds, peak, json.loads(Path(f"{output}.manifest.json").read_text())["run"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--adapter", default="champion")
    options = parser.parse_args()
    peaks, speed = [], 0.0
    for rows in (SMALL, options.rows):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "in.parquet")
            write_backlog(source, rows)
            seconds, peak, told = route(source, Path(folder, "out.parquet"), options.adapter)
        peaks.append(peak)
        speed = rows / seconds
        print(
            f"{rows} rows in {seconds:.1f} s: {speed:.0f} rows/s in all, {told['rows_per_second']:.0f} while routing, {peak >> 20} MB"
        )
    more = peaks[1] - peaks[0]
    print(
        f"peak memory {more / (1 << 20):+.0f} MB; {told['prompt_tokens'] / options.rows:.0f} prompt tokens a row"
    )
    raise SystemExit(speed < LEAST_ROWS_PER_SECOND or more > MOST_BYTES)


if __name__ == "__main__":
    main()
