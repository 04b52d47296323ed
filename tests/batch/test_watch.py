"""`--watch`: each file that arrives, one warm engine, and the champion of the moment; on the replay engine but for the last."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch import run, warm, watch
from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.cli import main
from batch.contract.contract import Contract
from batch.engine import EngineSpec
from batch.errors import BacklogError, EngineError, InputError, Interrupted
from batch.job import Job, Options
from batch.launch import part_writer
from batch.reporting.observer import Observer
from batch.storage import listing, mounts
from batch.storage.lock import lock_output
from batch.storage.workdir import WorkDir
from tests.conftest import make_bundle
from tests.faults import watch_memory


def backlog(path: Path, rows: int = 20, tag: str = "") -> Path:
    pq.write_table(
        pa.table({"id": range(rows), "request": [f"request {tag} {i}" for i in range(rows)]}), path
    )
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    return tmp_path / "in", tmp_path / "out"


@pytest.fixture
def registry(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "adapters"))
    registry = Registry()
    registry.root.mkdir()
    (registry.root / tiny_bundle.digest).symlink_to(tiny_bundle.path)
    registry.set_alias("champion", tiny_bundle.digest)
    return registry


class Script:
    """Routes files as the command does and, after each, does what comes next; at the end of the script it stops the watch."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.acts: Iterator[Callable[[], object]] = iter(acts)
        self.pids: list[int] = []
        self.said: list[str] = []

    def route(self, options: Options, engines_for: run.EnginesFor) -> None:
        run.run(options, None, lambda job: self._noting(engines_for, job))
        self.next()

    def _noting(self, engines_for: run.EnginesFor, job: Job):  # type: ignore[no-untyped-def]
        return _Noted(engines_for(job), self.pids)

    def say(self, line: str) -> None:
        self.said.append(line)
        self.next()

    def next(self) -> None:
        act = next(self.acts, None)
        if act is None:
            raise Interrupted(signal.SIGTERM)
        act()

    def run(self, inbox: Path, outbox: Path) -> None:
        with pytest.raises(Interrupted):
            watch.watch(
                Options(str(inbox), str(outbox), engine="replay", max_num_seqs=16), self.route, self.say
            )


class _Noted:
    def __init__(self, context, pids: list[int]) -> None:  # type: ignore[no-untyped-def]
        self.context, self.pids = context, pids

    def __enter__(self):  # type: ignore[no-untyped-def]
        engines = self.context.__enter__()
        self.pids += [engine.pid for engine in engines]
        return engines

    def __exit__(self, *exc: object) -> object:
        return self.context.__exit__(*exc)


def adapters_of(output: Path) -> set[str]:
    return set(pq.read_table(output)["adapter"].to_pylist())


def test_files_arrive_and_a_new_champion_serves_the_next_one(
    folders: tuple[Path, Path], registry: Registry, tiny_bundle: Bundle, tiny_base: Path, contract: Contract
) -> None:
    """One process id throughout; no row of the earlier file on the later adapter."""
    inbox, outbox = folders
    other = make_bundle(tiny_base, contract, registry.root, scale=0.2)
    backlog(inbox / "a.parquet")

    def promote() -> None:
        registry.set_alias("champion", other.digest)
        backlog(inbox / "b.parquet")

    script = Script(promote)
    script.run(inbox, outbox)
    assert adapters_of(outbox / "a.parquet") == {tiny_bundle.digest} and adapters_of(
        outbox / "b.parquet"
    ) == {other.digest}
    assert len(script.pids) == 2 and len(set(script.pids)) == 1


def test_a_refused_file_waits_for_its_change(folders: tuple[Path, Path], registry: Registry) -> None:
    """Half a file, as one that is still being copied, then the whole of it; the others are not held up."""
    inbox, outbox = folders
    whole = backlog(inbox / "late.parquet").read_bytes()
    (inbox / "late.parquet").write_bytes(whole[: len(whole) // 2])
    backlog(inbox / "other.parquet")
    (inbox / ".hidden.parquet").write_bytes(b"somebody's temporary file")
    script = Script(lambda: None, lambda: (inbox / "late.parquet").write_bytes(whole))
    script.run(inbox, outbox)
    assert (
        len(script.said) == 1
        and script.said[0].startswith("late.parquet: ")
        and "truncated" in script.said[0]
    )
    assert sorted(path.name for path in outbox.glob("*.parquet")) == ["late.parquet", "other.parquet"]


def test_what_is_done_is_not_done_again_by_another_champion(
    folders: tuple[Path, Path], registry: Registry, tiny_bundle: Bundle, tiny_base: Path, contract: Contract
) -> None:
    inbox, outbox = folders
    backlog(inbox / "a.parquet")
    Script().run(inbox, outbox)
    registry.set_alias("champion", make_bundle(tiny_base, contract, registry.root, scale=0.2).digest)
    backlog(inbox / "b.parquet")
    script = Script()
    script.run(inbox, outbox)
    assert len(script.pids) == 1 and adapters_of(outbox / "a.parquet") == {tiny_bundle.digest}


def test_what_a_watch_left_that_was_killed_behind_the_manifest_goes(
    folders: tuple[Path, Path], registry: Registry
) -> None:
    inbox, outbox = folders
    backlog(inbox / "a.parquet")
    Script().run(inbox, outbox)
    job = json.loads((outbox / "a.parquet.manifest.json").read_text())["job"]
    whole = sorted(outbox.iterdir())
    WorkDir.open(outbox / ".a.parquet.work", job).close()
    assert len(list(outbox.iterdir())) == len(whole) + 1
    for lock in (".a.parquet.lock", ".a.parquet.work.lock"):
        (outbox / lock).write_text("4194304")
    backlog(inbox / "b.parquet")
    Script().run(inbox, outbox)
    assert {*whole, outbox / "b.parquet", outbox / "b.parquet.manifest.json"} == set(outbox.iterdir())


def test_what_was_begun_is_ended_by_the_adapter_that_began_it(
    folders: tuple[Path, Path],
    registry: Registry,
    tiny_bundle: Bundle,
    tiny_base: Path,
    contract: Contract,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inbox, outbox = folders
    backlog(inbox / "a.parquet", rows=2000)
    monkeypatch.setattr(part_writer, "SHARD_SECONDS", 0.0)

    def cut(counts, rows) -> None:  # type: ignore[no-untyped-def]
        if counts.rows > 600:
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run.run(
            Options(str(inbox / "a.parquet"), str(outbox / "a.parquet"), engine="replay", max_num_seqs=16),
            Observer(progress=cut),
        )
    registry.set_alias("champion", make_bundle(tiny_base, contract, registry.root, scale=0.2).digest)
    Script().run(inbox, outbox)
    assert (
        adapters_of(outbox / "a.parquet") == {tiny_bundle.digest}
        and pq.read_table(outbox / "a.parquet").num_rows == 2000
    )


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL", "SOON", "PAUSE"):
        monkeypatch.setattr(watch, name, 0.05)


@pytest.mark.usefixtures("eager")
def test_what_is_not_the_files_fault_passes(
    folders: tuple[Path, Path], registry: Registry, tiny_bundle: Bundle
) -> None:
    """Each is said once, then mended; the file is routed as it lies."""
    inbox, outbox = folders
    champion = registry.root / "aliases/champion"
    lock = lock_output(str(outbox / "c.parquet"))
    champion.unlink()
    backlog(inbox / "a.parquet")

    def unmount() -> None:
        outbox.rename(outbox.with_name("gone"))
        backlog(inbox / "b.parquet")

    def another_watch_begins() -> None:
        lock.__enter__()
        backlog(inbox / "c.parquet")

    def a_folder_in_the_way() -> None:
        (outbox / "d.parquet.manifest.json").mkdir()
        backlog(inbox / "d.parquet")

    script = Script(
        lambda: registry.set_alias("champion", tiny_bundle.digest),
        unmount,
        lambda: outbox.with_name("gone").rename(outbox),
        another_watch_begins,
        lambda: lock.__exit__(None, None, None),
        a_folder_in_the_way,
        lambda: (outbox / "d.parquet.manifest.json").rmdir(),
    )
    script.run(inbox, outbox)
    assert [line.partition(":")[0] for line in script.said] == [f"{name}.parquet" for name in "abcd"]
    assert all(line.endswith("it is tried again") for line in script.said)
    assert sorted(path.name for path in outbox.glob("*.parquet")) == [f"{name}.parquet" for name in "abcd"]


@pytest.mark.usefixtures("eager")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_an_outbox_that_is_unmounted_is_waited_for(folders: tuple[Path, Path], registry: Registry) -> None:
    """The folder beneath must not fill up, nor settle a file. Begun before the disk is there, it goes over to it."""
    inbox, outbox = folders

    def mount() -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "none", str(outbox)], check=True)

    def unmount() -> None:
        subprocess.run(["umount", str(outbox)], check=True)

    def beneath() -> list[str]:
        return [path.name for path in outbox.glob("*.parquet")]

    def take_away() -> None:
        unmount()
        assert beneath() == ["a.parquet"]
        backlog(inbox / "b.parquet")

    def bring_another() -> None:
        """With nothing on it: all is routed again, as after a restart."""
        assert beneath() == ["a.parquet"]
        mount()

    backlog(inbox / "a.parquet")
    try:
        mount()
        unmount()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets nobody mount")
    script = Script(mount, take_away, bring_another, lambda: None)
    try:
        script.run(inbox, outbox)
        assert sorted(path.name for path in outbox.glob("*.parquet")) == ["a.parquet", "b.parquet"]
    finally:
        unmount()
    assert len(script.said) == 1 and "not mounted" in script.said[0]


@pytest.mark.usefixtures("eager")
def test_nothing_is_routed_while_the_mount_is_away(
    folders: tuple[Path, Path], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, where nobody may mount: what the kernel lists is made up. A root that it does not list is there."""
    inbox, outbox = folders
    mounted = {"/", str(outbox)}
    monkeypatch.setattr(mounts, "mount_points", lambda: mounted)
    monkeypatch.setattr(watch, "mount_points", lambda: mounted)
    backlog(inbox / "a.parquet")

    def unmount() -> None:
        mounted.clear()
        backlog(inbox / "b.parquet")

    def mount() -> None:
        assert not (outbox / "b.parquet").exists()
        mounted.add(str(outbox))

    script = Script(unmount, mount)
    script.run(inbox, outbox)
    assert (outbox / "b.parquet").exists() and len(script.said) == 1
    mounted.clear()
    assert watch.Outbox.of(outbox).mounted()


@pytest.mark.usefixtures("eager")
def test_an_outbox_may_become_another_folder(folders: tuple[Path, Path], registry: Registry) -> None:
    """A link that is led to a larger disk: what lies there already is not routed again."""
    inbox, outbox = folders
    small = outbox.rename(outbox.with_name("small"))
    large = outbox.with_name("large")
    outbox.symlink_to(small)
    backlog(inbox / "a.parquet")

    def lead_over() -> None:
        shutil.copytree(small, large)
        outbox.unlink()
        outbox.symlink_to(large)
        backlog(inbox / "b.parquet")

    script = Script(lead_over)
    script.run(inbox, outbox)
    assert script.said == [] and sorted(path.name for path in large.glob("*.parquet")) == [
        "a.parquet", "b.parquet"
    ]  # fmt: skip


@pytest.mark.usefixtures("eager")
def test_a_file_written_anew_or_taken_away_meanwhile(folders: tuple[Path, Path], registry: Registry) -> None:
    """An unfinished one under the same name is another job's; one that vanishes is nobody's."""
    inbox, outbox = folders
    backlog(inbox / "a.parquet", rows=600)
    backlog(inbox / "b.parquet")
    (outbox / "a.parquet.manifest.json").write_text(
        '{"job": {"input": {"files": [1]}}, "output": {"sha256": ""}}'
    )

    def cut(counts: object, rows: int) -> None:
        backlog(inbox / "a.parquet", rows=30, tag="anew")
        raise EngineError("the engine went")

    def first(options: Options, engines_for: run.EnginesFor) -> None:
        run.run(options, Observer(progress=cut if options.input.endswith("a.parquet") else None), engines_for)

    script = Script((inbox / "b.parquet").unlink, lambda: None)
    routes = iter((first,))
    with pytest.raises(Interrupted):
        watch.watch(
            Options(str(inbox), str(outbox), engine="replay", max_num_seqs=16),
            lambda *given: next(routes, script.route)(*given),
            script.say,
        )
    assert pq.read_table(outbox / "a.parquet")["request"].to_pylist()[0] == "request anew 0"


@pytest.mark.usefixtures("eager")
def test_only_a_fault_of_its_own_settles_a_file(folders: tuple[Path, Path], registry: Registry) -> None:
    """A refused file is not asked again until it changes, be it only its permissions' time; a bug ends nothing."""
    inbox, outbox = folders
    asked: list[str] = []

    def route(options: Options, engines_for: run.EnginesFor) -> None:
        asked.append(Path(options.input).name)
        if len(asked) > 8:
            raise Interrupted(signal.SIGTERM)
        raise {"bad.parquet": BacklogError("not Parquet"), "odd.parquet": TypeError("a bug")}[asked[-1]]

    said: list[str] = []
    for name in ("bad.parquet", "odd.parquet"):
        backlog(inbox / name)
    with pytest.raises(Interrupted):
        watch.watch(Options(str(inbox), str(outbox), engine="replay"), route, said.append)
    assert asked.count("bad.parquet") == 1 and asked.count("odd.parquet") == 8
    assert said[0] == "bad.parquet: not Parquet" and "this is a bug" in said[1] and len(said) == 2


@pytest.mark.usefixtures("eager")
def test_a_fault_of_the_files_own_is_final(folders: tuple[Path, Path], registry: Registry) -> None:
    """Columns that any adapter adds, a column that is not there, a name that no output can have; a column that
    only today's champion adds may pass.
    """
    inbox, outbox = folders
    table = pq.read_table(backlog(inbox / "good.parquet")).append_column("team", [["champion"] * 20])
    pq.write_table(table, inbox / "good.parquet")
    backlog(inbox / "noteam.parquet")
    (inbox / os.fsdecode(b"bad\xff.parquet")).write_bytes((inbox / "good.parquet").read_bytes())
    pq.write_table(table, inbox / f"{'x' * 240}.parquet")
    pq.write_table(table.append_column("Status", [["x"] * 20]), inbox / "status.parquet")
    pq.write_table(table.append_column("risk", [["x"] * 20]), inbox / "risk.parquet")
    said: list[str] = []
    asked: list[str] = []

    def route(options: Options, engines_for: run.EnginesFor) -> None:
        asked.append(Path(options.input).name)
        if asked.count("risk.parquet") > 2:
            raise Interrupted(signal.SIGTERM)
        run.run(options, None, engines_for)

    with pytest.raises(Interrupted):
        watch.watch(
            Options(str(inbox), str(outbox), engine="replay", adapter_column="team"), route, said.append
        )
    assert (outbox / "good.parquet").exists()
    assert asked.count("noteam.parquet") == asked.count("status.parquet") == 1
    assert [line for line in said if line.endswith("it is tried again")] == [
        line for line in said if line.startswith("risk.parquet: ")
    ]
    for why in ("no column 'team'", "not valid UTF-8", "longer than 241 bytes", "a column 'Status'"):
        assert sum(why in line for line in said) == 1, why


def test_folders_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        watch.watch(Options(str(tmp_path / "none"), str(tmp_path)), lambda *_: None, lambda _: None)
    with pytest.raises(InputError, match="taken for inputs"):
        watch.watch(Options(str(tmp_path), str(tmp_path)), lambda *_: None, lambda _: None)


@pytest.mark.parametrize("option", ["--metrics", "--report", "--work-dir", "--cache"])
def test_places_that_cannot_be_written_are_refused_before_a_file_arrives(
    option: str, folders: tuple[Path, Path]
) -> None:
    done = CliRunner().invoke(main, [*map(str, folders), "--watch", option, "/proc/nowhere/there"])
    assert done.exit_code == 2 and option in done.stderr.splitlines()[-1], done.output


def test_an_engine_serves_what_fits_it(tiny_bundle: Bundle) -> None:
    running = EngineSpec("vllm", "base", str(tiny_bundle.path), 1000, 16, ("k_proj", "q_proj"))
    for change, fits in (
        ({}, True), ({"max_model_len": 900}, True), ({"max_model_len": 1100}, False), ({"max_lora_rank": 8}, True),
        ({"max_lora_rank": 32}, False), ({"lora_modules": ("q_proj",)}, True), ({"lora_modules": ("o_proj",)}, False),
        ({"lora_modules": None}, False), ({"base": "other"}, False), ({"dtype": "float32"}, False), ({"max_loras": 2}, False),
    ):  # fmt: skip
        wanted = EngineSpec(**{**{f: getattr(running, f) for f in running.__dataclass_fields__}, **change})
        assert warm.serves(running, wanted) is fits, change


def test_the_command_ends_by_a_signal(folders: tuple[Path, Path], registry: Registry) -> None:
    """The installed program: a line for each file, exit 143 within ten seconds of SIGTERM, no engine left behind."""
    inbox, outbox = folders
    backlog(inbox / "a.parquet")
    script = Path(sys.executable).with_name("batch-route")
    command = [str(script), str(inbox), str(outbox), "--watch", "--engine", "replay"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == f"watching {inbox}\n"
        assert process.stderr.readline().startswith("a.parquet: 20 rows, 0 errors")  # the file is done
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    finally:
        watchdog.cancel()
        process.kill()
    assert process.returncode == 143 and errors == "Interrupted; run again to resume\n"
    assert (outbox / "a.parquet.manifest.json").exists()


@pytest.mark.parametrize("first", ["a", "a.parquet"])
def test_two_files_never_take_turns_at_one_output(
    folders: tuple[Path, Path], registry: Registry, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`a` and `a.parquet` would both be `a.parquet`: who was first has it while it lies there, also for a watch
    that begins later.
    """
    monkeypatch.setattr(watch, "SOON", 0.1)
    inbox, outbox = folders
    second = {"a": "a.parquet", "a.parquet": "a"}[first]
    backlog(inbox / first, 3, "first")
    script = Script(lambda: backlog(inbox / second, 5, "second"))
    script.run(inbox, outbox)
    told = f"{second}: a.parquet is already the output of {first}; rename one of the two; it is tried again"
    assert script.said == [told] and pq.read_metadata(outbox / "a.parquet").num_rows == 3
    again = Script((inbox / first).unlink)
    again.run(inbox, outbox)
    assert again.said == [told] and pq.read_metadata(outbox / "a.parquet").num_rows == 5


def test_folders_may_be_uris(folders: tuple[Path, Path], registry: Registry) -> None:
    inbox, outbox = (folder.rename(folder.with_name(f"{folder.name} box")) for folder in folders)
    backlog(inbox / "a.parquet")
    script = Script()
    with pytest.raises(Interrupted):
        options = Options(inbox.as_uri(), outbox.as_uri(), engine="replay", max_num_seqs=16)
        watch.watch(options, script.route, script.say)
    assert pq.read_metadata(outbox / "a.parquet").num_rows == 20 and script.said == []


@pytest.mark.parametrize("theirs", ["Parquet", "text"])
def test_a_file_that_no_run_made_stays(
    theirs: str, folders: tuple[Path, Path], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is moved away; an empty one, and an output whose manifest is gone, are replaced."""
    monkeypatch.setattr(watch, "SOON", 0.1)
    inbox, outbox = folders
    output = outbox / "a.parquet"
    if theirs == "Parquet":
        backlog(output, 3)
    else:
        output.write_text("id,label")
    before = output.read_bytes()
    backlog(inbox / "a.parquet")

    def move_away() -> None:
        assert output.read_bytes() == before
        output.write_bytes(b"")

    script = Script(move_away)
    script.run(inbox, outbox)
    told = "lies there already and is no output of batch-route; move it away, or rename one of the two"
    assert script.said == [f"a.parquet: a.parquet {told}; it is tried again"]
    assert pq.read_metadata(output).num_rows == 20
    (outbox / "a.parquet.manifest.json").unlink()
    again = Script()
    again.run(inbox, outbox)
    assert again.said == [] and (outbox / "a.parquet.manifest.json").exists()


def test_a_table_of_its_own_log_is_no_inbox(
    folders: tuple[Path, Path], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from the start on, nor while its log lies there; that is not a fault of the file's."""
    monkeypatch.setattr(watch, "SOON", 0.1)
    inbox, outbox = folders
    for log in ("_delta_log", ".hoodie"):
        (inbox / log).mkdir()
        with pytest.raises(InputError, match=r"in is a \w+ table"):
            watch.watch(Options(str(inbox), str(outbox)), lambda *_: None, lambda _: None)
        (inbox / log).rmdir()
    backlog(inbox / "a.parquet", 3)
    files = {inbox / "a.parquet": watch.File(watch.stamp_of(inbox / "a.parquet"))}
    (inbox / "_delta_log").mkdir()
    script = Script((inbox / "_delta_log").rmdir, (inbox / "a.parquet").unlink)
    (file,) = files.values()
    options = Options(str(inbox), str(outbox), engine="replay")
    with contextlib.closing(warm.WarmEngines()) as engines:
        for _ in range(2):
            watch._try(
                file, inbox / "a.parquet", outbox / "a.parquet", options, script.route, engines, script.say
            )
    assert script.said == [
        f"a.parquet: {inbox} is a Delta table; export its rows to Parquet files first; it is tried again"
    ]
    assert file.settled and pq.read_metadata(outbox / "a.parquet").num_rows == 3


def test_a_file_that_cannot_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b.parquet", "c"):
        (tmp_path / name).write_bytes(b"PAR1")
    unread = listing.unread

    def refusing(path: Path) -> str | None:
        if path.name != "b.parquet":  # root may read whatever its mode is
            raise {"a": PermissionError(errno.EACCES, "Permission denied"), "c": FileNotFoundError()}[
                path.name
            ]
        return unread(path)

    monkeypatch.setattr(watch, "unread", refusing)
    said: list[str] = []
    left: dict[Path, str] = {}
    for _ in range(2):
        found = [path.name for path, _ in watch.look(tmp_path, {}, left, said.append)]
        assert found == ["b.parquet", "c"] or found == ["c", "b.parquet"]
    assert said == ["a: skipped, it cannot be read (Permission denied)"]
    (tmp_path / "a").unlink()
    watch.look(tmp_path, {}, left, said.append)
    assert left == {}, "what was said of files that are gone is kept for ever"


def test_memory_is_flat_from_file_to_file(tmp_path: Path, registry: Registry) -> None:
    """The long form, over 2,000 files, is `tests.faults.watch_memory`. A file once cost 7.7 MB."""
    seen = watch_memory.watch(tmp_path / "watched", 30, rows=5)
    assert seen[-1] - seen[9] < 10 << 10, seen


def test_the_inbox_takes_every_name_and_says_what_it_leaves(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/x.parquet").touch()
    for name in ("a.parquet", "B.PARQUET", "c.parquet.gzip", ".hidden.parquet"):
        (tmp_path / name).touch()
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "20260101_00001_abcde")
    (tmp_path / "rows.csv").write_text("id")
    for name in ("gone", "gone.parquet"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    files: dict[Path, watch.File] = {}
    left: dict[Path, str] = {}
    for _ in range(2):
        found = {path.name for path, _ in watch.look(tmp_path, files, left, said.append)}
    assert found == {"a.parquet", "B.PARQUET", "c.parquet.gzip", "20260101_00001_abcde"}
    assert sorted(said) == [
        "deep: skipped, a folder",
        "gone.parquet: skipped, a link to a file that is not there",
        "gone: skipped, a link to a file that is not there",
        "rows.csv: skipped, not Parquet",
    ]
    assert len({watch.output_name(name) for name in found}) == 4
    assert (
        watch.output_name("a.parquet") == "a.parquet"
        and watch.output_name("B.PARQUET") == "B.PARQUET.parquet"
    )
