"""What is done stays done; what is not sure is done again; one run at a time."""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import InputError, OutputLockedError, StorageError
from batch.reporting.tally import Tally
from batch.storage.hashing import IdDigest
from batch.storage.manifest import Proof, finished, manifest_version, remove_manifest, write_manifest
from batch.storage.output import prove, write_rows
from batch.storage.receipts import Receipt, Receipts, part_name
from batch.storage.store import LocalStore
from batch.storage.units import Plan
from batch.storage.workdir import KEPT, WorkDir, changes, work_dir
from tests.batch.storage import examples

RUN = examples.RUN
FACTS: dict[str, Any] = {"input": {"size": 10, "files": ["a", "b"]}, "adapter": "0" * 64}
ROOT = Path(__file__).parents[3]
PLAN = Plan(30, 3)


class Ledger(contextlib.AbstractContextManager["Ledger"]):
    """A work directory and its receipts, of ten units of three rows."""

    def __init__(self, work: WorkDir) -> None:
        self.work, self.receipts = work, Receipts.open(LocalStore(work.path), PLAN)

    @classmethod
    def open(cls, path: Path, facts: dict, fresh: bool = False) -> "Ledger":  # type: ignore[type-arg]
        return cls(WorkDir.open(path, facts, fresh))

    def score(self, *units: int, attempt: str = "0123456789abcdef") -> bool:
        return all(attempted(self.receipts, unit, attempt) for unit in units)

    @property
    def done(self) -> list[int]:
        return [receipt.unit for receipt in self.receipts]

    def __exit__(self, *exception: object) -> None:
        self.work.close()


def attempted(receipts: Receipts, index: int, attempt: str) -> bool:
    """Write a unit's part and receipt; whether this attempt won."""
    unit, name = receipts.plan[index], part_name(index, attempt)
    table = pa.table({"id": pa.array(range(unit.start, unit.stop)), "tier": ["x"] * unit.rows})
    with receipts.store.writing(name) as location:
        write_rows(location, table.to_batches(), table.schema)
    found = prove(receipts.store.location(name))
    facts = (unit.index, unit.start, unit.rows, found.ids, name, found.sha256, found.bytes)
    return receipts.add(Receipt(*facts, tally=Tally().as_json(), engine={}, attempt=attempt))


def fill(work: Path, units: int = 3) -> None:
    with Ledger.open(work, FACTS) as ledger:
        ledger.score(*range(units))


def test_what_is_done_stays_done(tmp_path: Path) -> None:
    fill(tmp_path / "work")
    with Ledger.open(tmp_path / "work", FACTS) as ledger:
        assert ledger.done == [0, 1, 2] and 1 in ledger.receipts and 3 not in ledger.receipts
        parts = [pq.read_table(ledger.receipts.store.location(each.part).path) for each in ledger.receipts]
        assert pa.concat_tables(parts).column("id").to_pylist() == list(range(9))
        ledger.score(9)
        assert ledger.done == [0, 1, 2, 9] and not ledger.receipts.complete
        ledger.work.finish()
    assert not (tmp_path / "work").exists()


def test_a_unit_cut_short_costs_only_itself(tmp_path: Path) -> None:
    """Really killed, between a part's bytes and its name, and between the part and its receipt."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from batch.storage.location import Location\n"
        "from batch.storage.store import LocalStore\n"
        "from tests.batch.storage.test_receipts import Ledger\n"
        "ledger = Ledger.open(Path(sys.argv[1]), {})\n"
        "ledger.score(0)\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "if sys.argv[2] == 'part': Location.sync = die\n"
        "else: LocalStore.create = die\n"
        "ledger.score(1)\n"
    )
    for where in ("part", "receipt"):
        line = [sys.executable, "-c", program, str(tmp_path / where), where]
        assert subprocess.run(line, cwd=ROOT, check=False).returncode == -signal.SIGKILL
        assert len(os.listdir(tmp_path / where / "shards")) == 2
        with Ledger.open(tmp_path / where, {}) as ledger:
            assert ledger.done == [0]
            assert [name for name in os.listdir(tmp_path / where / "shards") if name[0] != "."] == [
                "00000-0123456789abcdef.parquet"
            ]
            assert ledger.score(1)


@pytest.mark.parametrize("what", ["shard", "receipt"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "rename", "swap"])
def test_a_damaged_unit_is_done_again(tmp_path: Path, what: str, damage: str) -> None:
    fill(tmp_path / "work")
    first, file = sorted((tmp_path / "work" / f"{what}s").iterdir())[:2]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    match damage:
        case "flip":
            file.write_bytes(data)
        case "truncate":
            file.write_bytes(data[:-10])
        case "remove":
            file.unlink()
        case "rename":
            file.rename(file.with_name(file.name.replace("00001", "00007")))
        case "swap":
            file.write_bytes(first.read_bytes())
    with Ledger.open(tmp_path / "work", FACTS) as ledger:
        assert ledger.done == [0, 2]
        assert ledger.score(1)
    with Ledger.open(tmp_path / "work", FACTS) as ledger:
        assert ledger.done == [0, 1, 2]


def test_every_flipped_byte_of_a_part_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path / "work", 1)
    (part,) = (tmp_path / "work" / "shards").iterdir()
    (receipt,) = (tmp_path / "work" / "receipts").iterdir()
    data, told = part.read_bytes(), receipt.read_bytes()
    for position in range(0, len(data), 7):
        part.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        receipt.write_bytes(told)
        with Ledger.open(tmp_path / "work", FACTS) as ledger:
            assert ledger.done == []


def test_the_first_attempt_wins(tmp_path: Path) -> None:
    """The part of a late one goes; a call that is made again after its reply was lost recognises itself."""
    with Ledger.open(tmp_path / "work", FACTS) as ledger:
        assert ledger.score(4, attempt="a" * 16) and not ledger.score(4, attempt="b" * 16)
        assert os.listdir(tmp_path / "work/shards") == [f"00004-{'a' * 16}.parquet"]
        (receipt,) = ledger.receipts
        assert receipt.attempt == "a" * 16 and ledger.receipts.add(receipt)
        assert os.listdir(tmp_path / "work/shards") == [f"00004-{'a' * 16}.parquet"]


def test_the_proof(tmp_path: Path) -> None:
    """All units, each once, and the input's ids: what differs is said and is no proof."""
    ids = IdDigest()
    ids.update(pa.array(range(30)))
    expect = (30, ids.hexdigest())
    with Ledger.open(tmp_path / "work", FACTS) as ledger:
        ledger.score(*range(9))
        with pytest.raises(StorageError, match="27 rows for 30"):
            ledger.receipts.prove("f" * 64, "id", expect)
        ledger.score(9)
        proof = ledger.receipts.prove("f" * 64, "id", expect)
        assert proof.rows == 30 and proof.parts and [part.rows for part in proof.parts] == [3] * 10
        assert len({part.name for part in proof.parts}) == 10
        with pytest.raises(StorageError, match="the ids or their order differ"):
            ledger.receipts.prove("f" * 64, "id", (30, "0" * 64))
        first, second = (
            ledger.receipts.store.location(part).path
            for part in ("shards/00000-0123456789abcdef.parquet", "shards/00001-0123456789abcdef.parquet")
        )
        Path(first).write_bytes(Path(second).read_bytes())
        with pytest.raises(StorageError, match="not what its receipt says"):
            ledger.receipts.prove("f" * 64, "id", expect)


def test_another_job_sets_the_work_aside_and_does_not_lose_it(tmp_path: Path) -> None:
    """Tonight's job starts at once, whatever another left; that one finds its work again until one is finished."""
    work = tmp_path / "work"
    fill(work)
    tonight = {"input": {"size": 11, "files": ["a"]}, "adapter": "1" * 64}
    with Ledger.open(work, tonight) as ledger:
        assert ledger.done == [] and ledger.work.other is not None
        said = changes(ledger.work.other, tonight)
        ledger.score(0)
    for part in ("input.size 10 → 11", "input.files.1 b → nothing", "adapter 0000000000000000…00000000 →"):
        assert part in said
    with Ledger.open(work, FACTS) as ledger:
        assert ledger.done == [0, 1, 2]
    with Ledger.open(work, tonight) as ledger:
        assert ledger.done == [0]
        ledger.work.finish()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("leave", ["no part", "job.json damaged", "job.json nested", "job.json missing"])
def test_what_cannot_be_resumed_is_collected(tmp_path: Path, leave: str) -> None:
    """Killed before the first shard, or its fingerprint is lost: nobody is asked, nothing is kept."""
    work = tmp_path / "work"
    fill(work, 0 if leave == "no part" else 2)
    match leave:
        case "job.json damaged":
            (work / "job.json").write_text("{")
        case "job.json nested":
            (work / "job.json").write_text("[" * 200_000)
        case "job.json missing":
            (work / "job.json").unlink()
    with Ledger.open(work, {"input": 1}) as ledger:
        assert ledger.done == []
        assert sorted(os.listdir(tmp_path)) == ["work", "work.lock"] and not os.listdir(work / "shards")


def test_only_so_many_other_jobs_are_kept(tmp_path: Path) -> None:
    for night in range(6):
        with Ledger.open(tmp_path / "work", {"night": night}) as ledger:
            ledger.score(0)
    assert len(os.listdir(tmp_path)) == 1 + KEPT
    WorkDir.open(tmp_path / "work", {"night": 5}, fresh=True).close()
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
        assert ledger.done == [0, 1, 2]
    with Ledger.open(work, FACTS, fresh=True) as ledger:
        assert ledger.done == []
        ledger.score(0)
        ledger.work.finish()
    assert all(path.read_text() == "mine" for path in theirs)
    assert sorted(path for path in work.rglob("*") if path.is_file()) == sorted(theirs)


@pytest.mark.parametrize("name", ["work", "work/shards", "work.lock"])
def test_links_at_fixed_names_are_not_followed(tmp_path: Path, name: str) -> None:
    """A link to a victim's folder or file, or to nothing: a line at once, and the victim is as it was."""
    victim = tmp_path / "home"
    (victim / "shards").mkdir(parents=True)
    (victim / "shards/00000-0123456789abcdef.parquet").write_text("precious")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for target in (victim, tmp_path / "nowhere/x"):
        (tmp_path / name).symlink_to(target)
        before = time.monotonic()
        with pytest.raises(InputError, match="symbolic link"):
            Ledger.open(tmp_path / "work", FACTS, fresh=True)
        assert time.monotonic() - before < 1
        (tmp_path / name).unlink()
    assert (victim / "shards/00000-0123456789abcdef.parquet").read_text() == "precious"


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


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """FAT has none: the first attempt still wins, and one that was killed before its end does not."""

    def refuse(*paths: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    store = LocalStore(tmp_path)
    assert store.create("a", b"first") and not store.create("a", b"second")
    assert store.read("a") == b"first" and store.names("") == ["a"] and len(os.listdir(tmp_path)) == 1
    with Ledger.open(tmp_path / "work", FACTS) as ledger:
        (tmp_path / "work/receipts/00000.json").touch()  # claimed, and no more
        assert ledger.score(0) and ledger.done == [0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_a_folder_that_another_user_laid_there(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    os.chown(work, 12345, 12345)
    work.chmod(0o777)
    with pytest.raises(InputError, match="another user's"):
        Ledger.open(work, FACTS)
    work.chmod(0o755)  # nobody else can have written in it since it was a service's own
    Ledger.open(work, FACTS).work.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can lay another user's file there")
def test_another_users_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "work.lock").touch()
    (tmp_path / "work.lock").chmod(0o600)
    os.chown(tmp_path / "work.lock", 12345, 12345)
    opened = (
        "from pathlib import Path; from batch.storage.workdir import WorkDir; WorkDir.open(Path('work'), {})"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", sys.executable, "-c", opened],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "work.lock is another user's lock; remove it" in done.stderr.splitlines()[-1]


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
        WorkDir.open(tmp_path / "work", {"a": (1, 2), "b": {3: None}}).close()


@pytest.mark.parametrize("place", ["file", "file/x"])
def test_where_no_folder_can_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--work-dir"):
        Ledger.open(tmp_path / place / "work", FACTS)


HOLDER = """
import os, sys, time
from pathlib import Path
from batch.storage.workdir import WorkDir
ledger = WorkDir.open(Path(sys.argv[1]), {})
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
            WorkDir.open(tmp_path / "work", {}).finish()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)


def test_the_lock_goes_with_the_ledger(tmp_path: Path) -> None:
    with WorkDir.open(tmp_path / "work", FACTS), pytest.raises(OutputLockedError):
        WorkDir.open(tmp_path / "work", FACTS)
    WorkDir.open(tmp_path / "work", FACTS).close()


PROOF = Proof(rows=1, ids="i", sha256="", bytes=1)


def finish_run(output: Path, facts: dict[str, Any]) -> Proof:
    import dataclasses
    import hashlib

    output.write_bytes(b"rows")
    proof = dataclasses.replace(PROOF, sha256=hashlib.sha256(b"rows").hexdigest())
    write_manifest(str(output), facts, proof, run=RUN, drift=None)
    return proof


def test_finished_only_for_the_same_job_and_the_same_bytes(tmp_path: Path) -> None:
    output, facts = tmp_path / "out.parquet", examples.FACTS
    assert finished(str(output), facts) is None
    proof = finish_run(output, facts)
    manifest = finished(str(output), facts)
    assert manifest is not None
    assert manifest["output"]["sha256"] == proof.sha256
    assert manifest["run"] == RUN
    assert finished(str(output), {**facts, "adapter": "1"}) is None
    output.write_bytes(b"other")
    assert finished(str(output), facts) is None
    output.unlink()
    assert finished(str(output), facts) is None
    (tmp_path / "out.parquet.manifest.json").write_text("[]")
    assert finished(str(output), facts) is None
    remove_manifest(str(output), manifest_version(str(output)))
    assert not os.listdir(tmp_path)
