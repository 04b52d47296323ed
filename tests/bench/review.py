"""The review page under load, and the loop that it closes: `python -m tests.bench.review keys` and `… improve`.

`keys`: milliseconds from a key press to the next painted frame, and from Enter to the next request, in a real browser
with 5,000 queued rows. `improve`: requests with gold facts are routed by the champion; those marked `human` are
answered from gold as a reviewer would; `batch-train improve` fits again; both adapters answer rows that nobody reviewed.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
ROWS = 5_000
PRESSES = 100
CONTRACT = ROOT / "data/contract.toml"


def gold(path: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


def scored(path: Path) -> Path:
    rows = gold("data/v2/train.jsonl")
    names = ("tier", "risk", "recommended_platform", "needs_review")
    lines = [
        {
            **{name: rows[i % len(rows)][name] for name in (*names, "reason")},
            "id": f"r{i}",
            "request": f"{rows[i % len(rows)]['request']} Case {i}.",
            **{f"{name}_score": 0.9 for name in names},
            "score": 0.3,
            "status": "ok",
            "adapter": "0" * 64,
            "triage": "human",
        }
        for i in range(ROWS)
    ]
    pl.DataFrame(lines).write_parquet(path)
    return path


def keys(folder: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "train",
        "review",
        str(scored(folder / "out.parquet")),
        "--contract",
        str(CONTRACT),
    ]
    line += ["--labels", str(folder / "labels.jsonl"), "--examples", str(ROOT / "data/v2/train.jsonl")]
    server = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout
    address = server.stdout.readline().split("Open ")[1].strip()
    paint = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(address)
            page.wait_for_selector("#work:not([hidden])")
            floor, choice, save = [], [], []
            for _ in range(PRESSES):
                floor.append(timed(lambda: page.evaluate(paint)))
                for _ in range(5):
                    choice.append(timed(lambda: page.keyboard.press("2"), lambda: page.evaluate(paint)))
                name = page.inner_text("#id")
                other = f'#id:not(:text-is("{name}"))'
                save.append(timed(lambda: page.keyboard.press("s"), partial(page.wait_for_selector, other)))
            browser.close()
    finally:
        server.terminate()
    for what, found in (
        ("two empty frames", floor),
        ("choose, painted", choice),
        ("save, next request", save),
    ):
        print(
            f"{what}: median {statistics.median(found):.1f} ms, 95th percentile {sorted(found)[int(0.95 * len(found))]:.1f} ms"
        )


def timed(*acts: Callable[[], object]) -> float:
    started = time.perf_counter()
    for act in acts:
        act()
    return 1000 * (time.perf_counter() - started)


def improve(folder: Path, config: str, reviewed: str, unseen: str) -> None:
    """Uses the champion of `$BATCH_ROUTE_ADAPTERS`."""
    trained = {row["request"] for row in gold("data/v3/train.jsonl")}
    rows = {str(row["id"]): row for row in gold(reviewed) if row["request"] not in trained}
    table = pl.DataFrame({"id": list(rows), "request": [row["request"] for row in rows.values()]})
    table.write_parquet(folder / "in.parquet")
    run("batch", folder / "in.parquet", folder / "out.parquet")
    people = pl.read_parquet(folder / "out.parquet").filter(pl.col("triage") == "human")["id"].to_list()
    print(f"{len(people)} of {len(rows)} rows are for people")
    note = {"decision": "label", "reviewer": "gold", "reviewed_at": "2026-01-01T00:00:00+00:00"}
    lines = [json.dumps({**rows[name], **note}, ensure_ascii=False) for name in people]
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run(
        "train",
        "improve",
        config,
        folder / "labels.jsonl",
        "--beside",
        unseen,
        "--out",
        folder / "reviewed",
        "--no-promote",
    )


def run(*line: object) -> None:
    subprocess.run([sys.executable, "-m", *map(str, line)], cwd=ROOT, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["keys", "improve"])
    parser.add_argument("--config", default="train/mini-v3.toml")
    parser.add_argument("--reviewed", default="data/written/train.jsonl")
    parser.add_argument("--unseen", default="data/development.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.what == "keys":
            keys(Path(name))
        else:
            improve(Path(name), options.config, options.reviewed, options.unseen)
