"""What is done stays done; what is not sure is done again; one run at a time."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import InputError, OutputLockedError
from batch.storage.ledger import Ledger, changes
from batch.storage.manifest import Proof, finished, remove_manifest, write_manifest
from batch.storage.workdir import KEPT, work_dir

FACTS = {"input": {"size": 10, "files": ["a", "b"]}, "adapter": "0" * 64}
ROOT = Path(__file__).parents[3]


def rows(start: int, count: int) -> pa.Table:
    return pa.table({"id": pa.array(range(start, start + count)), "tier": ["x"] * count})


def fill(work: Path, counts: tuple[int, ...] = (3, 2, 4)) -> None:
    with Ledger.open(work, FACTS) as ledger:
        for count in counts:
            ledger.commit(rows(ledger.done_rows, count))


def test_resumes_after_the_last_shard(tmp_path: Path) -> None:
    fill(tmp_path / "work")
    with Ledger.open(tmp_path / "work", FACTS) as ledger:
        assert ledger.done_rows == 9
        assert pa.concat_tables(map(pq.read_table, ledger.shards)).column("id").to_pylist() == list(range(9))
        ledger.commit(rows(9, 1))
        assert ledger.done_rows == 10
        ledger.finish()
    assert not (tmp_path / "work").exists()


def test_a_commit_cut_short_costs_only_itself(tmp_path: Path) -> None:
    """Really killed, between the shard's bytes and its name. Checked against a `_verify` that trips over the rest."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import pyarrow as pa\n"
        "from batch.storage.location import Location\n"
        "from batch.storage.ledger import Ledger\n"
        "ledger = Ledger.open(Path(sys.argv[1]), {})\n"
        "ledger.commit(pa.table({'id': [0, 1]}))\n"
        "Location.sync = lambda location: os.kill(os.getpid(), signal.SIGKILL)\n"
        "ledger.commit(pa.table({'id': [2]}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "work")], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path / "work" / "shards")) == 2
    with Ledger.open(tmp_path / "work", {}) as ledger:
        assert ledger.done_rows == 2
        assert os.listdir(tmp_path / "work" / "shards") == [ledger.shards[0].name]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "rename"])
def test_a_damaged_shard_is_dropped_with_all_after_it(tmp_path: Path, damage: str) -> None:
    fill(tmp_path / "work")
    shard = sorted((tmp_path / "work" / "shards").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    match damage:
        case "flip":
            shard.write_bytes(data)
        case "truncate":
            shard.write_bytes(data[:-10])
        case "remove":
            shard.unlink()
        case "rename":
            shard.rename(shard.with_name(f"00000007{shard.name[8:]}"))
    with Ledger.open(tmp_path / "work", FACTS) as ledger:
        assert ledger.done_rows == 3
        assert len(list((tmp_path / "work" / "shards").iterdir())) == 1
        ledger.commit(rows(3, 6))
    with Ledger.open(tmp_path / "work", FACTS) as ledger:
        assert ledger.done_rows == 9


def test_every_flipped_byte_of_a_shard_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path / "work", (5,))
    (shard,) = (tmp_path / "work" / "shards").iterdir()
    data = shard.read_bytes()
    for position in range(0, len(data), 7):
        shard.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with Ledger.open(tmp_path / "work", FACTS) as ledger:
            assert ledger.done_rows == 0


def test_another_job_sets_the_work_aside_and_does_not_lose_it(tmp_path: Path) -> None:
    """Tonight's job starts at once, whatever another left; that one finds its work again until one is finished."""
    work = tmp_path / "work"
    fill(work)
    tonight = {"input": {"size": 11, "files": ["a"]}, "adapter": "1" * 64}
    with Ledger.open(work, tonight) as ledger:
        assert ledger.done_rows == 0 and ledger.work.other is not None
        said = changes(ledger.work.other, tonight)
        ledger.commit(rows(0, 5))
    for part in ("input.size 10 → 11", "input.files.1 b → nothing", "adapter 0000000000000000…00000000 →"):
        assert part in said
    with Ledger.open(work, FACTS) as ledger:
        assert ledger.done_rows == 9
    with Ledger.open(work, tonight) as ledger:
        assert ledger.done_rows == 5
        ledger.finish()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("leave", ["no shard", "job.json damaged", "job.json nested", "job.json missing"])
def test_what_cannot_be_resumed_is_collected(tmp_path: Path, leave: str) -> None:
    """Killed before the first shard, or its fingerprint is lost: nobody is asked, nothing is kept."""
    work = tmp_path / "work"
    fill(work, () if leave == "no shard" else (3, 2))
    match leave:
        case "job.json damaged":
            (work / "job.json").write_text("{")
        case "job.json nested":
            (work / "job.json").write_text("[" * 200_000)
        case "job.json missing":
            (work / "job.json").unlink()
    with Ledger.open(work, {"input": 1}) as ledger:
        assert ledger.done_rows == 0
        assert sorted(os.listdir(tmp_path)) == ["work", "work.lock"] and not os.listdir(work / "shards")


def test_only_so_many_other_jobs_are_kept(tmp_path: Path) -> None:
    for night in range(6):
        with Ledger.open(tmp_path / "work", {"night": night}) as ledger:
            ledger.commit(rows(0, 1))
    assert len(os.listdir(tmp_path)) == 1 + KEPT
    Ledger.open(tmp_path / "work", {"night": 5}, fresh=True).close()
    assert os.listdir(tmp_path) == ["work"] and not os.listdir(tmp_path / "work/shards")


def test_only_what_a_run_made_is_removed(tmp_path: Path) -> None:
    """Somebody's files in the folder stay, through another job, --fresh and the end."""
    work = tmp_path / "work"
    theirs = [work / "thesis.txt", work / "shards/a", work / "shards/1.parquet", work / "answers/notes.md"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    fill(work)
    with Ledger.open(work, FACTS) as ledger:
        assert ledger.done_rows == 9
    with Ledger.open(work, FACTS, fresh=True) as ledger:
        assert ledger.done_rows == 0
        ledger.commit(rows(0, 4))
        ledger.finish()
    assert all(path.read_text() == "mine" for path in theirs)
    assert sorted(path for path in work.rglob("*") if path.is_file()) == sorted(theirs)


@pytest.mark.parametrize("name", ["work", "work/shards", "work.lock"])
def test_links_at_fixed_names_are_not_followed(tmp_path: Path, name: str) -> None:
    """A link to a victim's folder or file, or to nothing: a line at once, and the victim is as it was."""
    victim = tmp_path / "home"
    (victim / "shards").mkdir(parents=True)
    (victim / "shards/00000000-0123456789abcdef.parquet").write_text("precious")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for target in (victim, tmp_path / "nowhere/x"):
        (tmp_path / name).symlink_to(target)
        before = time.monotonic()
        with pytest.raises(InputError, match="symbolic link"):
            Ledger.open(tmp_path / "work", FACTS, fresh=True)
        assert time.monotonic() - before < 1
        (tmp_path / name).unlink()
    assert (victim / "shards/00000000-0123456789abcdef.parquet").read_text() == "precious"


@pytest.mark.parametrize("leave", ["text", "hard link", "folder"])
def test_somebodys_file_is_no_lock(tmp_path: Path, leave: str) -> None:
    lock, victim = tmp_path / "work.lock", tmp_path / "victim"
    victim.write_text("12" if leave == "hard link" else "precious")
    match leave:
        case "text":
            victim.rename(lock)
            victim = lock
        case "hard link":
            os.link(victim, lock)
        case "folder":
            lock.mkdir()
    before = victim.read_text()
    with pytest.raises(InputError):
        Ledger.open(tmp_path / "work", FACTS)
    assert victim.read_text() == before and lock.exists()


def test_one_folder_for_many_outputs(tmp_path: Path) -> None:
    """`--work-dir` is shared: each output's work has a folder of its own in it, that only this user can enter."""
    folders = {work_dir(str(tmp_path / f"{place}/out.parquet"), tmp_path) for place in "ab"}
    folders.add(work_dir(str(tmp_path / ("x" * 240 + "é.parquet")), tmp_path))
    assert len(folders) == 3
    for folder in folders:
        with Ledger.open(folder, FACTS):
            assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_facts_that_json_rewrites_still_match(tmp_path: Path) -> None:
    for _ in range(2):
        Ledger.open(tmp_path / "work", {"a": (1, 2), 3: None}).close()


@pytest.mark.parametrize("place", ["file", "file/x"])
def test_where_no_folder_can_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--work-dir"):
        Ledger.open(tmp_path / place / "work", FACTS)


HOLDER = """
import os, sys, time
from pathlib import Path
from batch.storage.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]), {})
if sys.argv[2] == "fork" and os.fork() == 0:
    time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_live_holder_keeps_the_lock_and_a_dead_one_does_not(tmp_path: Path, how: str) -> None:
    """`fork`: checked against a ledger that lets its children keep the lock's descriptor, which stays locked."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "work"), how]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            before = time.monotonic()
            with pytest.raises(OutputLockedError, match=f"process {holder.pid}") as locked:
                Ledger.open(tmp_path / "work", {})
            assert time.monotonic() - before < 5
            assert locked.value.exit_code == 4
            holder.kill()
            holder.wait()
            Ledger.open(tmp_path / "work", {}).finish()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)


def test_the_lock_goes_with_the_ledger(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "work", FACTS), pytest.raises(OutputLockedError):
        Ledger.open(tmp_path / "work", FACTS)
    Ledger.open(tmp_path / "work", FACTS).close()


PROOF = Proof(rows=1, ids="i", sha256="", bytes=1)


def finish_run(output: Path, facts: dict[str, object]) -> Proof:
    import dataclasses
    import hashlib

    output.write_bytes(b"rows")
    proof = dataclasses.replace(PROOF, sha256=hashlib.sha256(b"rows").hexdigest())
    write_manifest(str(output), facts, proof, rows_per_second=3.5)
    return proof


def test_finished_only_for_the_same_job_and_the_same_bytes(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    assert finished(str(output), FACTS) is None
    proof = finish_run(output, FACTS)
    manifest = finished(str(output), FACTS)
    assert manifest is not None
    assert manifest["output"]["sha256"] == proof.sha256
    assert manifest["rows_per_second"] == 3.5
    assert finished(str(output), {**FACTS, "adapter": "1"}) is None
    output.write_bytes(b"other")
    assert finished(str(output), FACTS) is None
    output.unlink()
    assert finished(str(output), FACTS) is None
    (tmp_path / "out.parquet.manifest.json").write_text("[]")
    assert finished(str(output), FACTS) is None
    remove_manifest(str(output))
    assert not os.listdir(tmp_path)
