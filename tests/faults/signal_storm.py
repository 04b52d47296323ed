"""Signals at random moments of a run's life: `python -m tests.faults.signal_storm --signals 200 --seed 1`.

A run on the replay engine gets one of the signals that end a process, at a moment drawn over the whole of its life: while
the interpreter imports, while the tokenizer loads, while the engine starts, while rows are routed, while the output is
assembled. It must be complete or exit with 128 + the signal's number, say one line, leave no file in the temporary
folder and no engine. Before this project's first line Python has no handler yet: there the signal's own death is right.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from batch.errors import ENDING
from tests.faults.kill_storm import write_input

ROWS = 600
BEFORE_US = 0.4  # seconds in which the interpreter itself starts, on a busy machine
PHASE = r"(loading the model|compiling the grammar|routing|writing the output)(: [0-9.]+ s)?"
ALLOWED = re.compile(rf"({PHASE}|Interrupted; run again to resume)?")


class Storm:
    def __init__(self, folder: Path, adapter: str) -> None:
        self.folder, self.output = folder, folder / "out.parquet"
        write_input(folder / "in.parquet", ROWS)
        (folder / "tmp").mkdir()
        (folder / "slow.json").write_text('{"delay": 0.05}')
        self.command = [
            *(sys.executable, "-m", "batch", str(folder / "in.parquet"), str(self.output)),
            *("--adapter", adapter, "--engine", "replay", "--max-num-seqs", "64", "--max-error-rate", "1"),
        ]
        self.environment = {
            **os.environ,
            "TMPDIR": str(folder / "tmp"),
            "BATCH_ROUTE_REPLAY_FAULTS": str(folder / "slow.json"),
        }
        started = time.monotonic()
        with self._start() as run:
            run.communicate()
        assert run.returncode == 0
        self.life = time.monotonic() - started
        self.whole = self.output.read_bytes()

    def send(self, number: int, moment: float) -> str:
        """One run with one signal, `moment` seconds after its start; how it ended."""
        self.output.unlink(missing_ok=True)
        self.output.with_name(self.output.name + ".manifest.json").unlink(missing_ok=True)
        with self._start() as run:
            time.sleep(moment)
            run.send_signal(number)
            _, errors = run.communicate(timeout=60)
        if run.returncode == 0:
            assert self.output.read_bytes() == self.whole
            return "complete"
        early = run.returncode == -number and moment < BEFORE_US
        what = f"{signal.Signals(number).name} after {moment:.2f} s: exit {run.returncode}, {errors!r}"
        assert early or run.returncode == 128 + number, what
        lines = [line for line in errors.splitlines() if "rows/s" not in line]
        assert early or all(map(ALLOWED.fullmatch, lines)), what
        assert not os.listdir(self.folder / "tmp"), f"{what}; left {os.listdir(self.folder / 'tmp')}"
        return "before the handler" if early else "interrupted"

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )


def storm(folder: Path, adapter: str, signals: int, seed: int) -> Counter[str]:
    """`signals` of them, spread over the life of a run; what became of the runs."""
    runs, chance = Storm(folder, adapter), random.Random(seed)
    ends: Counter[str] = Counter()
    for index in range(signals):
        moment = (index + chance.random()) / signals * runs.life
        try:
            ends[runs.send(chance.choice(ENDING), moment)] += 1
        except AssertionError as error:
            ends["wrong"] += 1
            print(error, flush=True)
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signals", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--adapter", default="champion")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ends = storm(Path(folder), options.adapter, options.signals, options.seed)
    print(dict(ends))
    sys.exit(bool(ends["wrong"]))


if __name__ == "__main__":
    main()
