"""Killed, interrupted, out of space, or not alone: the output is absent, old or complete, and a rerun resumes.

How each test was shown to fail is in its docstring: the named change was made, the test failed, the change was undone.
"""

import contextlib
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batch import run
from batch.adapter.bundle import Bundle
from batch.errors import Interrupted, StorageError
from batch.job import Options
from batch.launch import part_writer
from batch.reporting.observer import Observer
from batch.scoring.router import Counts
from batch.storage.location import Location
from batch.storage.output import assemble
from tests.batch.test_run import alive, backlog, command
from tests.conftest import ROOT


def routed(line: Sequence[str], file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end; with `file_bytes` no file may grow beyond, as on a disk that is full."""

    def limit() -> None:
        if file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, preexec_fn=limit)


@pytest.mark.parametrize(("to", "kills"), [("file", 6), ("folder", 6), ("store", 2)])
def test_a_storm_of_kills_tears_nothing(tiny_bundle: Bundle, to: str, kills: int) -> None:
    """`make faults` does 200. Fails as the script says."""
    line = [
        sys.executable,
        "-m",
        "tests.faults.kill_storm",
        "--kills",
        str(kills),
        "--seed",
        "7",
        "--to",
        to,
        "--adapter",
        str(tiny_bundle.path),
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{kills} kills")


def test_a_storm_whose_job_cannot_run_ends() -> None:
    """It waited for ever, on a core of its own, for a job that had ended."""
    line = [sys.executable, "-m", "tests.faults.kill_storm", "--adapter", "nobody"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode and "AdapterError" in done.stderr


@pytest.mark.parametrize("where", ["the same", "another"])
def test_the_second_run_on_an_output_is_refused(tiny_bundle: Bundle, tmp_path: Path, where: str) -> None:
    """Exit 4, whatever the work directory; a dead holder's lock is free. Fails without `lock_output`."""
    source, output = backlog(tmp_path / "in.parquet", rows=20_000), tmp_path / "out.parquet"
    first = subprocess.Popen(
        command(tiny_bundle, source, output), cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        while not (tmp_path / ".out.parquet.work/shards").exists():
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it holds its lock even while it does nothing
        more = ["--work-dir", str(tmp_path / "elsewhere")] if where == "another" else []
        second = routed(command(tiny_bundle, source, output, *more))
        assert second.returncode == 4 and f"process {first.pid}" in second.stderr
    finally:
        first.kill()
        first.wait()
    assert routed(command(tiny_bundle, source, output)).returncode == 0
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_keep_what_is_done(tiny_bundle: Bundle, tmp_path: Path, number: signal.Signals) -> None:
    """More than the units that were full is kept. Fails when only full units are committed."""
    source, output = backlog(tmp_path / "in.parquet", rows=30_000), tmp_path / "out.parquet"
    options = Options(
        str(source), str(output), adapter=str(tiny_bundle.path), engine="replay", max_num_seqs=64
    )

    def send(counts: Counts, total: int) -> None:
        if counts.rows > 20_000:  # more than the router holds back
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="run again to resume") as interrupted:
        run.run(options, Observer(progress=send))
    assert interrupted.value.exit_code == 128 + number and not output.exists()
    summary = run.run(options)
    assert summary.resumed_rows > 12_000 and summary.resumed_rows % 1024, "of the unit at work too"
    assert pq.read_table(output, columns=["id"]).equals(pq.read_table(source, columns=["id"]))


def test_a_killed_parent_leaves_no_engine(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """It is stopped, and can notice nothing itself. Fails without PR_SET_PDEATHSIG."""
    line = command(tiny_bundle, backlog(tmp_path / "in.parquet", rows=60_000), tmp_path / "out.parquet")
    job = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list((tmp_path / ".out.parquet.work").glob("answers/*")):  # the engine has loaded
        assert job.poll() is None
        time.sleep(0.01)
    children = list(map(int, Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()))
    engines = [pid for pid in children if b"engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert engines
    for pid in engines:
        os.kill(pid, signal.SIGSTOP)
    job.kill()
    job.wait()
    deadline = time.monotonic() + 5
    while any(map(alive, engines)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [pid for pid in engines if alive(pid)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.mark.parametrize("where", ["at a part", "at assembly"])
def test_a_full_disk_is_exit_75_and_leaves_the_old_output(
    tiny_bundle: Bundle, tmp_path: Path, where: str
) -> None:
    """A limit on file size stands in for the full disk. Fails when EFBIG counts as an error like others."""
    texts = [
        f"Request {row}: {hashlib.sha512(bytes([row % 256, row // 256])).hexdigest()}"
        for row in range(20_000)
    ]
    source, output = backlog(tmp_path / "in.parquet", texts=[*texts]), tmp_path / "out.parquet"
    output.write_bytes(b"old")
    limit = 60_000 if where == "at a part" else 400_000
    full = routed(command(tiny_bundle, source, output), file_bytes=limit)
    assert full.returncode == 75, full.stderr
    assert (
        full.stderr.splitlines()[-1].startswith("Error: ")
        and "space" in full.stderr
        and "Traceback" not in full.stderr
    )
    assert output.read_bytes() == b"old" and not (tmp_path / "out.parquet.manifest.json").exists()
    parts = list((tmp_path / ".out.parquet.work/shards").iterdir())
    assert bool(parts) == (where == "at assembly")
    done = routed(command(tiny_bundle, source, output))
    assert done.returncode == 0 and pq.read_metadata(output).num_rows == 20_000
    if parts:
        assert "resumed" in done.stdout


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root may mount; the limit on file size above needs nobody"
)
def test_a_really_full_disk(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """ENOSPC on a tmpfs of 300 kB, of which the probe and the lock still fit. Fails when ENOSPC counts as an error like others."""
    source, disk = backlog(tmp_path / "in.parquet", rows=60_000), tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        full = routed(command(tiny_bundle, source, disk / "out.parquet"))
        assert (
            full.returncode == 75 and "free some space" in full.stderr and "Traceback" not in full.stderr
        ), full.stderr
        assert not (disk / "out.parquet").exists()
        assert routed(["mount", "-o", "remount,size=30m", str(disk)]).returncode == 0
        assert routed(command(tiny_bundle, source, disk / "out.parquet")).returncode == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_rows_that_differ_from_the_input_are_never_an_output(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receipts that lost a part behind the run's back. Fails without the comparison in `assemble`."""
    source, output = backlog(tmp_path / "in.parquet", rows=700), tmp_path / "out.parquet"
    monkeypatch.setattr(part_writer, "SHARD_SECONDS", -1.0)
    monkeypatch.setattr("batch.publish.assemble", lambda parts, *rest: assemble(parts[:-1], *rest))
    with pytest.raises(StorageError, match="rows for 700") as wrong:
        run.run(Options(str(source), str(output), adapter=str(tiny_bundle.path), engine="replay"))
    assert wrong.value.exit_code == 75
    assert not output.exists() and not Path(f"{output}.manifest.json").exists()


def test_every_rename_is_synced_before_and_after(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, rename, directory, in this order, for each shard, the output and the manifest. Fails without the sync in `replacing`."""
    calls: list[tuple[str, str]] = []

    def unnamed(location: Location) -> str:
        """The file's name; a temporary file's, whose own is random, by the file that it is for."""
        _, _, target = location.name.partition(" for ")
        return f".{os.path.basename(target)}.partial" if target else os.path.basename(location.path)

    def noting(name: str) -> None:
        real = getattr(Location, name)

        def noted(location: Location) -> None:
            calls.append((name, unnamed(location)))
            real(location)

        monkeypatch.setattr(Location, name, noted)

    noting("sync")
    noting("sync_folder")
    output = tmp_path / "out.parquet"
    run.run(
        Options(
            str(backlog(tmp_path / "in.parquet")), str(output), adapter=str(tiny_bundle.path), engine="replay"
        )
    )
    for name in ("out.parquet", "out.parquet.manifest.json"):
        synced = calls.index(("sync", f".{name}.partial"))
        assert ("sync_folder", name) in calls[synced:]
    part = next(
        index for index, (call, name) in enumerate(calls) if call == "sync" and name.startswith(".00000-")
    )
    assert calls[part + 1][0] == "sync_folder" and calls[part + 1][1].startswith("00000-")
    assert calls[part + 2 :].index(("sync_folder", "00000.json")) >= 0
    assert calls.index(("sync", ".out.parquet.partial")) < calls.index(
        ("sync", ".out.parquet.manifest.json.partial")
    )
