"""SIGKILL at random moments over the commit path: `python -m tests.faults.kill_storm --kills 200 --seed 1 --to folder`.

A job on the replay engine keeps a shard every 256 rows, and a part and a receipt every 1,024. It is killed while it commits,
while it publishes, or between the output's last rename and the end, at a moment drawn from a seeded generator, and run again,
to be killed again, until it once gets through. After each kill the output must be absent, the old one or the complete one,
and a manifest must speak of exactly the files beside it; what gets through must have the bytes of an uninterrupted run, so
its ids and labels too. Shown to fail with a `replacing` that has the file written under its own name (torn), and with an
`assemble` that leaves the old manifest beside the new output.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.batch.storage.examples import FILE, manifest

ROWS = 3000
FOOTER = b"another night's, batch_route.version"  # which tells a run's own file from a user's
OLD = FOOTER + len(FOOTER).to_bytes(4, "little") + b"PAR1"
OLD_PART = "part-00000-01234567.parquet"


def old_manifest(folder: bool) -> bytes:
    told = {"sha256": digest(OLD), "name": OLD_PART}
    return manifest([told]) if folder else manifest(output={**FILE, **told, "columns": []})


class Storm:
    """One job in one folder. Everything that uses Arrow happens in forked children: a fork of its threads would hang."""

    glance = 0.0001  # seconds between two looks at the state

    def __init__(self, folder: Path, adapter: str, to: str = "file", rows: int = ROWS) -> None:
        self.folder, self.adapter, self.to = folder, adapter, to
        self.output = folder / ("out.parquet" if to == "file" else "out")
        self.manifest = (
            folder / "out.parquet.manifest.json" if to == "file" else self.output / "manifest.json"
        )
        self.work = folder / f".{self.output.name}.work"
        self._wait(self._fork(lambda: write_input(folder / "in.parquet", rows)))
        self._before: set[str] = set()
        self._inode: int | None = None
        marks = []
        pid = self._fork(self._run)
        stages = (self._committing, self._publishing, self._renamed)
        for stage in stages:
            while not stage():
                assert not self._ended(pid), "the job ended before it was seen to commit"
                time.sleep(self.glance)
            marks.append(time.monotonic())
        self._wait(pid)
        ends = [*marks[1:], time.monotonic()]
        self.spans = {stage: end - start for stage, start, end in zip(stages, marks, ends, strict=True)}
        self.whole = self._content()

    @property
    def target(self) -> str:
        return str(self.output)

    def kill(self, chance: random.Random) -> str | None:
        """Start or resume the job and kill it; the state it left, or None where it got through first."""
        self._before, self._inode = self._kept(), self._last_inode()
        stage = chance.choice(list(self.spans))
        delay = chance.uniform(0, self.spans[stage])
        pid = self._fork(self._run)
        while not stage():
            if self._ended(pid):
                return None
            time.sleep(self.glance)
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline:
            time.sleep(0.0001)
        os.kill(pid, signal.SIGKILL)
        return None if self._ended(pid, block=True) else self.state()

    def state(self) -> str:
        """absent, old or complete; anything else is an error."""
        found = self._content()
        names = {"": "absent", digest(OLD): "old", self.whole: "complete"}
        assert found in names, "the output is torn"
        return names[found]

    def check_through(self) -> None:
        assert self.state() == "complete", "the resumed run has other bytes"
        assert self.manifest.exists() and not self.work.exists()
        if self.to == "folder":
            told = [part["name"] for part in json.loads(self.manifest.read_text())["output"]["parts"]]
            assert sorted(os.listdir(self.output)) == sorted([*told, "manifest.json", "_SUCCESS"])

    def reset(self, old: bool) -> None:
        """Before the next job: no output, or that of another night with its manifest."""
        for path in (self.manifest, *([self.output] if self.to == "file" else self.output.iterdir())):
            path.unlink(missing_ok=True)
        if not old:
            return
        (self.output if self.to == "file" else self.output / OLD_PART).write_bytes(OLD)
        if self.to == "folder":
            (self.output / "_SUCCESS").touch()
        self.manifest.write_bytes(old_manifest(self.to == "folder"))

    def _content(self) -> str:
        """A digest of what a reader finds: of a folder, what the manifest names, which must be there and as it says."""
        told = json.loads(self.manifest.read_text())["output"] if self.manifest.exists() else None
        if self.to == "file":
            found = digest(self.output.read_bytes()) if self.output.exists() else ""
            assert told is None or told["sha256"] == found, "the manifest speaks of another file"
            return found
        assert told or not (self.output / "_SUCCESS").exists(), "a success that no manifest speaks of"
        parts = [(self.output / part["name"], part["sha256"]) for part in told["parts"]] if told else []
        assert all(digest(path.read_bytes()) == sha256 for path, sha256 in parts), "a part is torn"
        if (self.output / "_SUCCESS").exists():
            assert set(self.output.glob("*.parquet")) == {path for path, _ in parts}, "rows twice"
        return (
            parts[0][1]
            if len(parts) == 1
            else digest("".join(sha for _, sha in parts).encode())
            if parts
            else ""
        )

    def _kept(self) -> set[str]:
        names: set[str] = set()
        for folder in ("shards", "receipts"):
            with contextlib.suppress(OSError):
                names.update(os.listdir(self.work / folder))
        return names

    def _committing(self) -> bool:
        return bool(self._kept() - self._before)

    def _publishing(self) -> bool:
        if self.to == "file":
            return any(self.folder.glob(".*.partial"))
        return (
            self.output.exists()
            and not (self.output / "_SUCCESS").exists()
            and any(self.output.glob("part-*"))
        )

    def _last_inode(self) -> int | None:
        """Of what is renamed last: the file, or the folder's manifest."""
        with contextlib.suppress(FileNotFoundError):
            return (self.output if self.to == "file" else self.manifest).stat().st_ino
        return None

    def _renamed(self) -> bool:
        return self._last_inode() not in (None, self._inode)

    def _run(self) -> None:
        from batch import run
        from batch.job import Options
        from batch.launch import part_writer

        part_writer.SHARD_SECONDS = -1.0  # after each batch
        source, few = str(self.folder / "in.parquet"), 64  # at once, so that batches are small
        run.run(Options(source, self.target, adapter=self.adapter, engine="replay", max_num_seqs=few))

    @staticmethod
    def _fork(act: Callable[[], object]) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            act()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)

    @staticmethod
    def _ended(pid: int, block: bool = False) -> bool:
        """Whether the job ended well; an error of its own is one here."""
        ended, status = os.waitpid(pid, 0 if block else os.WNOHANG)
        if not ended or os.WIFSIGNALED(status):
            return False
        assert os.WEXITSTATUS(status) == 0, "the job failed by itself"
        return True

    def _wait(self, pid: int) -> None:
        assert self._ended(pid, block=True)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_input(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [
        f"Request {row}: please build a dashboard of sales." if row % 97 else None for row in range(rows)
    ]
    pq.write_table(
        pa.table({"id": range(rows), "request": pa.array(texts, pa.string())}), path, row_group_size=1000
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so long with fewer kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--adapter", default="champion")
    parser.add_argument("--to", choices=["file", "folder", "store", "store-folder"], default="file")
    options = parser.parse_args()
    chance, states, through = random.Random(options.seed), Counter[str](), 0
    with contextlib.ExitStack() as stack:
        import batch.run  # noqa: F401  # once, for all that are forked

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.to.startswith("store"):
            from tests.faults.store_storm import StoreStorm
            from tests.servers import Weed

            server = stack.enter_context(Weed(folder / "server"))
            storm: Storm = StoreStorm(folder, options.adapter, options.to, server)
        else:
            storm = Storm(folder, options.adapter, options.to)
        storm.reset(old=False)
        end = time.monotonic() + options.seconds
        while states.total() < options.kills and time.monotonic() < end:
            state = storm.kill(chance)
            if state:
                states[state] += 1
            else:
                storm.check_through()
                through += 1
                storm.reset(old=through % 2 == 1)
        while storm.kill(chance):
            pass
        storm.check_through()
    print(
        f"{states.total()} kills: {dict(states)}; {through + 1} jobs got through, each with the bytes of an uninterrupted one"
    )


if __name__ == "__main__":
    main()
