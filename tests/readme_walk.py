"""Walks the README as a stranger would: `python -m tests.readme_walk`, or `make walk`. It takes half an hour.

A fresh clone of the last commit in an empty folder, a new home, no environment but what installing packages
needs. Every command of the README's `sh` blocks runs as it is printed, in order, and must succeed. What the
README shows must be what a command before it has printed: a `text` block line by line, and of a table the
figures of each row. A figure may be off by 2 %, for another processor rounds otherwise. Nothing of the clone
may be changed.
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
    "batch-route data/requests.parquet routed --ray head-node:6379": "needs a Ray cluster",
}
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```|^(\| right.*?)\n\n", re.S | re.M)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
OFF = 0.02  # of a figure, and of a score


def commands(page: str) -> list[str]:
    """The lines of its `sh` blocks, without their comments."""
    return [line for kind, line in _parts(page) if kind == "sh"]


def _parts(page: str) -> list[tuple[str, str]]:
    """In order: each command, and each block of output and each table of figures as one text."""
    found: list[tuple[str, str]] = []
    for kind, text, table in BLOCK.findall(page):
        if kind == "sh":
            lines = (re.sub(r"\s+# .*", "", line).strip() for line in text.splitlines())
            found += [(kind, line) for line in lines if line and not line.startswith("#")]
        else:
            found.append((kind, text) if kind else ("table", table))
    return found


def differs(kind: str, shown: str, printed: str) -> str | None:
    """The first line of a block, or row of a table, that is not printed; None if all are, in their order."""
    lines = iter(printed.splitlines())
    for line in shown.splitlines()[2 * (kind == "table") :]:
        if line.strip() and not any(_alike(kind, line, each) for each in lines):
            return line.strip()
    return None


def _alike(kind: str, shown: str, printed: str) -> bool:
    """A table's row is printed in a frame, with the numbers of rows behind a slash and intervals below."""
    if kind == "table":
        shown, printed = _row(shown, r"[,(].*"), _row(printed, r"/.*")
    (words, figures), (others, found) = map(_figures, (shown, printed))
    return words == others and all(
        abs(a - b) <= OFF * max(1.0, a) for a, b in zip(figures, found, strict=True)
    )


def _row(line: str, rest: str) -> str:
    """Its cells, each without the `rest` and without marks."""
    return " ".join(re.sub(rest, "", cell).strip(" *`") for cell in re.split("[|│]", line))


def _figures(line: str) -> tuple[str, list[float]]:
    """The line with its numbers taken out and its white space evened, and the numbers."""
    numbers = [float(number.replace(",", "")) for number in NUMBER.findall(line)]
    return " ".join(NUMBER.sub("0", line).split()), numbers


def walk(folder: Path) -> list[str]:
    """Every command, in a clone in `folder`; returns what was not as the README says."""
    clone, problems, printed = folder / "batch-route", list[str](), {"nothing": ""}
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (folder / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    environment |= {"HOME": str(folder / "home"), "COLUMNS": "80"}
    for kind, line in _parts((clone / "README.md").read_text(encoding="utf-8")):
        if kind != "sh":
            missing = [differs(kind, line, output) for output in printed.values()]
            if None not in missing:
                problems.append(
                    f"after {list(printed)[-1]}: shown, but printed by nothing before: {missing[-1]}"
                )
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
        printed[line] = output = done.stdout + done.stderr
        print(f"{time.monotonic() - began:7.1f} s  exit {done.returncode}  {line}", flush=True)
        if done.returncode:
            problems.append(f"{line}: exit {done.returncode}: {output.strip().splitlines()[-1:]}")
        (folder / f"{len(os.listdir(folder)):02}.txt").write_text(f"$ {line}\n{output}")
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
