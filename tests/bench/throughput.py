"""`make bench`: the same distinct rows through `batch-route` and through its peers, in alternation.

    python -m tests.bench.throughput --rows 2000 --rounds 3 --out results.json

Every run is a process of its own; all get the same base, adapter, prompt, schema, dtype and threads. Steady rates leave
out the start: rows / (done - ready). Where a peer does not tell when it is ready (`run-batch`, `ray-data`), a run of one
row stands for its start. Prints medians and the ratio of `batch-route` to each.
"""

import contextlib
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from tests.bench import peers
from train.mini_base.requests import requests

OURS = "batch-route"
ORDER = [OURS, *peers.PEERS]
# for `generate` of transformers, one row at a time and batched: its rate does not depend on how many
FEW_ROWS, SOME_ROWS = (
    50,
    256,
)
console = Console(soft_wrap=True)


def backlog(path: Path, rows: int, seed: int = 0) -> Path:
    """Distinct requests from the phrase book, as a Parquet file."""
    texts: dict[str, None] = {}
    for request in requests(random.Random(seed)):
        texts[request.text] = None
        if len(texts) == rows:
            break
    pq.write_table(pa.table({"id": [f"r{i:06d}" for i in range(rows)], "request": list(texts)}), path)
    return path


def json_schema(contract: Contract, reasons: str) -> dict[str, Any]:
    """What the others decode under: their texts have no bounds, which xgrammar 0.2.8 cannot compile."""
    fields = contract.fields if reasons == "all" else contract.scored_fields
    kinds = {f.name: {"enum": [*f.values]} if f.scored else {"type": "string"} for f in fields}
    return {"type": "object", "properties": kinds, "required": [*kinds], "additionalProperties": False}


def make_job(folder: Path, rows: int, reasons: str, dtype: str, threads: int) -> dict[str, Any]:
    bundle = Bundle.open(Registry().resolve("champion"))
    renderer, contract = bundle.renderer, bundle.contract
    source = backlog(folder / "rows.parquet", rows)
    table = pq.read_table(source)
    pq.write_table(table.slice(0, 1), folder / "one.parquet")
    pq.write_table(table.slice(0, FEW_ROWS), folder / "few.parquet")
    pq.write_table(table.slice(0, SOME_ROWS), folder / "some.parquet")
    return {
        "base": str(bundle.resolve_base(None)),
        "adapter": str(bundle.path),
        "system": contract.system_prompt,
        "schema": json_schema(contract, reasons),
        "fields": [field.name for field in contract.scored_fields],
        "reasons": reasons,
        "rank": max(8, bundle.rank),
        "max_tokens": renderer.max_answer_tokens,
        "max_model_len": renderer.max_model_len,
        "input": str(source),
        "one_row": str(folder / "one.parquet"),
        "few_rows": str(folder / "few.parquet"),
        "some_rows": str(folder / "some.parquet"),
        "dtype": dtype,
        "threads": threads,
    }


def fastest_dtype() -> str:
    flags = Path("/proc/cpuinfo").read_text()
    return (
        "bfloat16"
        if torch.cuda.is_available() or "avx512_bf16" in flags or "amx_bf16" in flags
        else "float32"
    )


class PeakMemory(threading.Thread):
    """Highest proportional set size, in bytes, of a process and all it starts; looked at twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak, self._process, self._over = 0, psutil.Process(pid), threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.5):
            total = 0
            try:
                tree = [self._process, *self._process.children(recursive=True)]
            except psutil.Error:
                return
            for process in tree:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.peak


def call(command: list[str], log: Path, timeout: float) -> tuple[str | None, float, int]:
    """Run a command; returns its output or None where it failed, its seconds and its peak memory.

    Output goes to files: an engine that outlives its parent would keep a pipe open.
    """
    began, printed = time.monotonic(), log.with_suffix(".out")
    with log.open("w") as errors, printed.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=errors, start_new_session=True)
        memory = PeakMemory(process.pid)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            seconds, peak = time.monotonic() - began, memory.stop()
            _end(process)
    return (printed.read_text() if code == 0 else None), seconds, peak


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ray and vLLM leave processes behind; the next run must not share the cores with them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()
    for each in psutil.process_iter(["cmdline", "environ"]):
        if (each.info["environ"] or {}).get("BATCH_ROUTE_BENCH") == str(os.getpid()):
            each.kill()


def run_ours(job: dict[str, Any], folder: Path, timeout: float) -> dict[str, Any]:
    output = folder / "ours.parquet"
    options = [
        "--dtype",
        job["dtype"],
        "--threads",
        str(job["threads"]),
        "--reasons",
        job["reasons"],
        "--fresh",
    ]
    command = [str(Path(sys.executable).with_name("batch-route")), job["input"], str(output), *options]
    text, seconds, memory = call(command, folder / "ours.log", timeout)
    if text is None:
        return {"error": last_line(folder / "ours.log")}
    run = json.loads(Path(f"{output}.manifest.json").read_text())["run"]
    rows = pq.read_table(output)
    answers = rows.select(job["fields"]).to_pylist()
    return {
        "rows": rows.num_rows,
        "seconds": seconds,
        "first": run["seconds_to_first_row"],
        "rate": run["rows_per_second"],
        "tokens": run["answer_tokens"] / rows.num_rows,
        "steps": run["engine"]["usage"]["steps"],
        "idle": run["engine"]["usage"]["idle_seconds"] / run["seconds"],
        "memory": memory,
        "labels": dict(zip(rows["id"].to_pylist(), (tuple(a.values()) for a in answers), strict=True)),
    }


def run_peer(
    name: str, job: dict[str, Any], folder: Path, timeout: float, start: float | None
) -> dict[str, Any]:
    output = folder / f"{name}.parquet"
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**job, "output": str(output)}))
    command = [sys.executable, "-m", "tests.bench.peers", name, str(path)]
    text, seconds, memory = call(command, folder / f"{name}.log", timeout)
    found = [line for line in (text or "").splitlines() if line.startswith("RESULT ")]
    if not found:
        return {"error": last_line(folder / f"{name}.log")}
    result = json.loads(found[-1].removeprefix("RESULT "))
    rows = pq.read_table(output)
    ready = result["ready"] if result["ready"] is not None else start
    return {
        "rows": rows.num_rows,
        "seconds": seconds,
        "first": result["first"],
        "rate": rows.num_rows / (result["done"] - (ready or 0.0)),
        "steps": result.get("steps"),
        "memory": memory,
        "labels": peers.labels(
            zip(rows["id"].to_pylist(), rows["answer"].to_pylist(), strict=True), job["fields"]
        ),
    }


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if "Error" in line]
    return (lines or ["no result"])[-1][:200]


def one_row_start(name: str, job: dict[str, Any], folder: Path, timeout: float) -> float | None:
    """Seconds that a run of a single row takes."""
    return run_peer(name, {**job, "input": job["one_row"]}, folder, timeout, None).get("seconds")


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    shared = [row for row in theirs if row in ours]
    same = sum(theirs[row] == ours[row] for row in shared)
    return f"{same}/{len(shared)}"


def report(runs: dict[str, list[dict[str, Any]]]) -> None:
    def median(name: str, key: str) -> float | None:
        values = [run[key] for run in runs[name] if run.get(key) is not None]
        return statistics.median(values) if values else None

    table = Table(
        "",
        "rows/s",
        "batch-route ×",
        "tokens/s",
        "steps/row",
        "first row s",
        "seconds in all",
        "peak MiB",
        "labels as ours",
    )
    ours, tokens = median(OURS, "rate"), median(OURS, "tokens")
    for name in runs:
        failed = [run["error"] for run in runs[name] if "error" in run]
        rate = median(name, "rate")
        if rate is None:
            table.add_row(name, f"failed: {failed[-1]}")
            continue
        steps, first, memory = median(name, "steps"), median(name, "first"), median(name, "memory")
        rows = runs[name][-1]["rows"]
        table.add_row(
            name,
            f"{rate:.2f}",
            f"{ours / rate:.2f}" if ours else "",
            f"{rate * tokens:.0f}" if tokens else "",
            f"{steps / rows:.3f}" if steps else "",
            f"{first:.1f}" if first else "",
            f"{median(name, 'seconds'):.1f}",
            f"{(memory or 0) / 2**20:.0f}",
            agreement(runs[OURS][-1]["labels"], runs[name][-1]["labels"])
            if "labels" in runs[OURS][-1]
            else "",
        )
    Console(width=150).print(table)


@click.command()
@click.option("--rows", default=2000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", default=",".join(ORDER), show_default=True, help="which to run, separated by commas")
@click.option(
    "--reasons",
    type=click.Choice(["all", "none"]),
    default="all",
    show_default=True,
    help="none: the labels alone, of the peers too, but for transformers, which has no grammar to leave them out",
)
@click.option(
    "--dtype",
    default=fastest_dtype,
    help="of everyone  [default: bfloat16 where the hardware has it, else float32]",
)
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--timeout", default=3600.0, show_default=True, help="seconds for one run")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("bench"),
    show_default=True,
    help="folder for files and results",
)
def main(
    rows: int, rounds: int, only: str, reasons: str, dtype: str, threads: int, timeout: float, out: Path
) -> None:
    os.environ["BATCH_ROUTE_BENCH"] = str(os.getpid())
    os.environ["OMP_NUM_THREADS"] = str(threads)
    out.mkdir(parents=True, exist_ok=True)
    job = make_job(out, rows, reasons, dtype, threads)
    names = [OURS, *(name for name in only.split(",") if name != OURS)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    starts: dict[str, float | None] = {}
    digest = hashlib.sha256(Path(job["input"]).read_bytes()).hexdigest()[:12]
    console.print(
        f"{rows} distinct rows (sha256 {digest}), {rounds} rounds, reasons {reasons}, {dtype}, {threads} threads"
    )
    for number in range(rounds):
        for name in names:
            if name == OURS:
                result = run_ours(job, out, timeout)
            else:
                if name in ("run-batch", "ray-data") and name not in starts:
                    starts[name] = one_row_start(name, job, out, timeout)
                result = run_peer(name, job, out, timeout, starts.get(name))
            runs[name].append(result)
            shown = {key: value for key, value in result.items() if key != "labels"}
            console.print(f"round {number + 1} {name}: {json.dumps(shown)}", highlight=False)
            (out / "runs.json").write_text(
                json.dumps(
                    {n: [{k: v for k, v in r.items() if k != "labels"} for r in rs] for n, rs in runs.items()}
                )
            )
    report(runs)


if __name__ == "__main__":
    main()
