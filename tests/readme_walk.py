"""Walks the README as a stranger would: `python -m tests.readme_walk`, or `make walk`. It takes half an hour.

A fresh clone of the last commit in an empty folder, a new home, no environment but what installing packages
needs. Every command of the README's `sh` blocks runs as it is printed, in order, and must succeed; where a
`text` block follows, the command must print it, whatever the numbers. Nothing of the clone may be changed by it.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = re.compile(r"PATH|LANG|TERM|.*_proxy|PIP_.*|.*CA_.*|.*CERT.*", re.I)  # of the environment
LEFT_OUT = {
    "make test": "the suite itself",
    "BATCH_ROUTE_ONLINE=1 make train CONFIG=train/qwen3-4b.toml": "downloads 8 GB and needs a GPU",
    "batch-route data/requests.parquet routed/ --ray head-node:6379": "needs a Ray cluster",
    "batch-train promote latest": "the gates are for adapters of the shipped task",
}
BLOCK = re.compile(r"```(sh|text)\n(.*?)```", re.S)


def commands(page: str) -> list[str]:
    """The lines of its `sh` blocks, without their comments."""
    return [line for kind, line in _lines(page) if kind == "sh"]


def _lines(page: str) -> list[tuple[str, str]]:
    """In order: each command, and each block of output as one text."""
    found: list[tuple[str, str]] = []
    for kind, text in BLOCK.findall(page):
        if kind == "text":
            found.append((kind, text))
        else:
            lines = (re.sub(r"\s+# .*", "", line).strip() for line in text.splitlines())
            found += [("sh", line) for line in lines if line and not line.startswith("#")]
    return found


def differs(expected: str, printed: str) -> str | None:
    """The first line of `expected` that is not printed, numbers and widths aside; None if all are, in order."""
    seen = iter(map(_shape, printed.splitlines()))
    return next((line for line in expected.splitlines() if line.strip() and _shape(line) not in seen), None)


def _shape(line: str) -> str:
    return re.sub(r"[\d.,]+", "0", re.sub(r"[\s─━]+", " ", line.strip()))


def walk(folder: Path) -> list[str]:
    """Every command, in a clone in `folder`; returns what was not as the README says."""
    clone, problems, before, printed = folder / "batch-route", list[str](), "", ""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (folder / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    environment |= {"HOME": str(folder / "home"), "COLUMNS": "80"}
    for kind, line in _lines((clone / "README.md").read_text(encoding="utf-8")):
        if kind == "text":
            if missing := differs(line, printed):
                problems.append(f"{before}: the README shows a line that it did not print: {missing.strip()}")
            continue
        if line.startswith(("export ", "unset ")):
            exported = subprocess.run(
                ["bash", "-c", f"{line}; env -0"], cwd=clone, env=environment, capture_output=True
            )
            environment = dict(pair.split("=", 1) for pair in exported.stdout.decode().split("\0") if pair)
            continue
        if why := LEFT_OUT.get(line):
            print(f"left out   {line}: {why}")
            continue
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", line], cwd=clone, env=environment, capture_output=True, text=True
        )
        before, printed = line, done.stdout + done.stderr
        print(f"{time.monotonic() - began:7.1f} s  exit {done.returncode}  {line}", flush=True)
        if done.returncode:
            problems.append(f"{line}: exit {done.returncode}: {printed.strip().splitlines()[-1:]}")
        (folder / f"{len(os.listdir(folder)):02}.txt").write_text(f"$ {line}\n{printed}")
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True
    ).stdout
    if tracked := [line for line in changed.splitlines() if not line.startswith("??")]:
        problems.append(f"the clone's own files changed: {tracked}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to clone and to keep what is printed")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="readme-walk-"))
    folder.mkdir(parents=True, exist_ok=True)
    problems = walk(folder)
    for problem in problems:
        print(f"NOT SO  {problem}")
    print(f"what was printed is in {folder}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
