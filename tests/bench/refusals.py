"""How soon a base is refused that cannot be trained or served: `python -m tests.bench.refusals`.

Each case of tests/train/test_refusals.py through `batch-train plan` and `fit`, as a whole process; prints the wall seconds of
each, the longest last. Exits with 1 where one took 10 seconds or was not refused with exit code 2.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import ROOT, build_tiny_base
from tests.train.test_families import recipe
from tests.train.test_refusals import CASES, SECONDS, not_a_number, weights


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["BATCH_ROUTE_ADAPTERS"] = str(folder / "adapters")
        (folder / "tiny").mkdir()
        tiny = build_tiny_base(folder / "tiny")
        asked = [
            (command, name, CASES[name][0]) for command, name in itertools.product(("plan", "fit"), CASES)
        ]
        asked.append(
            ("fit", "a value that is no number", weights(not_a_number))
        )  # plan does not read weights
        seconds = {}
        for command, name, change in asked:
            base = folder / "base"
            shutil.copytree(tiny, base)
            change(base)
            line = [sys.executable, "-m", "train", command, str(recipe(base, folder).path)]
            began = time.monotonic()
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
            seconds[command, name] = time.monotonic() - began
            assert done.returncode == 2, f"{command}, {name}: exit code {done.returncode}"
            shutil.rmtree(base)
    for (command, name), each in sorted(seconds.items(), key=lambda item: item[1]):
        print(f"{each:5.1f} s  {command:4}  {name}")
    sys.exit(max(seconds.values()) >= SECONDS)


if __name__ == "__main__":
    main()
