"""Identical texts are asked once: within a run, over a night's end, beside another run, and never where it would lie.

How each test was shown to fail is in its docstring: the named change was made, the test failed, the change was undone.
"""

import json
import multiprocessing
import os
import random
import sqlite3
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from batch import run
from batch.adapter.bundle import Bundle
from batch.errors import InputError, Interrupted
from batch.job import Options
from batch.launch import part_writer
from batch.reporting.observer import Observer
from batch.reporting.summary import Summary
from batch.scoring import cache
from batch.scoring.cache import AnswerStore
from batch.scoring.known_answers import known_answers
from batch.scoring.lane import ScoredRow
from batch.storage.hashing import repeated, text_hashes
from tests.batch.test_run import HOSTILE, backlog, route, stop_behind_a_shard

FACTS = {"version": "1", "base": {"sha256": "0"}, "dtype": "float32"}


def row(risk: str = "low", **more: Any) -> ScoredRow:
    return ScoredRow({"risk": risk, "needs_review": True}, {"risk": 0.1 + 0.2}, ("a_rule",), **more)


def routed(
    bundle: Bundle, folder: Path, texts: list[str | None], output: str = "out.parquet", **more: Any
) -> Summary:
    source = backlog(folder / "in.parquet", texts=texts)
    return run.run(
        Options(str(source), str(folder / output), adapter=str(bundle.path), engine="replay", **more)
    )


def kinds(summary: Summary) -> tuple[int, int, int]:
    return summary.counts.inferred, summary.counts.deduplicated, summary.counts.cached


def test_a_text_is_asked_once_and_fanned_out(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """5,000 rows of 50 texts, far and near each other. Fails without the store, and without the texts in flight."""
    texts = [f"Request {i * i % 50 if i % 2 else i // 100}: a dashboard." for i in range(5000)]
    # some are answered before others are read
    summary = routed(tiny_bundle, tmp_path, [*texts, *HOSTILE], max_num_seqs=16)
    unusable = 4
    asked = len(set(texts)) + len(HOSTILE) - unusable
    assert kinds(summary) == (asked, 5000 - len(set(texts)), 0)
    told = json.loads((tmp_path / "out.parquet.manifest.json").read_text())["run"]
    assert (told["inferred"], told["deduplicated"], told["cached"]) == kinds(summary)
    made = pq.read_table(tmp_path / "out.parquet").drop_columns(["id", "when"]).slice(0, 5000).to_pylist()
    by_text: dict[str, Any] = {}
    for each in made:
        assert by_text.setdefault(each["request"], each) == each


def test_a_resumed_run_knows_what_it_asked(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when the answers are kept in memory only."""
    monkeypatch.setattr(part_writer, "SHARD_SECONDS", -1.0)
    texts = [f"Request {i % 600}: a dashboard." for i in range(1200)]
    source = backlog(tmp_path / "in.parquet", texts=[*texts])
    options = Options(
        str(source),
        str(tmp_path / "out.parquet"),
        adapter=str(tiny_bundle.path),
        engine="replay",
        max_num_seqs=16,
    )
    with pytest.raises(Interrupted):
        run.run(options, Observer(progress=stop_behind_a_shard(tmp_path / "out.parquet")))
    summary = run.run(options)
    assert summary.resumed_rows and summary.counts.inferred <= 600 - 256
    assert summary.resumed_rows + summary.counts.rows == 1200


def test_a_second_night_asks_only_what_changed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """95 % unchanged: 5 % of the work, the same answers. Fails when the fingerprint changes with the input."""
    cache = tmp_path / "cache"
    first = [f"Request {i}: a dashboard." for i in range(2000)]
    assert kinds(routed(tiny_bundle, tmp_path, [*first], "first.parquet", cache=cache)) == (2000, 0, 0)
    second = [f"Request {i}: {'an app' if i % 20 == 0 else 'a dashboard'}." for i in range(2000)]
    assert kinds(routed(tiny_bundle, tmp_path, [*second], "second.parquet", cache=cache)) == (100, 0, 1900)
    assert kinds(routed(tiny_bundle, tmp_path, [*second], "plain.parquet")) == (2000, 0, 0)
    assert (tmp_path / "second.parquet").read_bytes() == (tmp_path / "plain.parquet").read_bytes()


def test_errors_are_asked_again(tmp_path: Path) -> None:
    """Fails when `remember` keeps every row."""
    with AnswerStore.open(tmp_path, FACTS) as store:
        store.remember("a", {"x": row(), "y": ScoredRow(None, None, (), "truncated")})
        assert store.recall("a", ["x", "y", "z"]) == {"x": row()}


@pytest.mark.parametrize(
    "change", [{"version": "2"}, {"base": {"sha256": "1"}}, {"dtype": "bfloat16"}], ids=str
)
def test_another_fingerprint_knows_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    """Nor does another adapter. Fails when the key leaves out the facts or the adapter."""
    with AnswerStore.open(tmp_path, FACTS) as store:
        store.remember("a", {"x": row()})
    with AnswerStore.open(tmp_path, FACTS | change) as store:
        assert store.recall("a", ["x"]) == {}
    with AnswerStore.open(tmp_path, FACTS) as store:
        assert store.recall("b", ["x"]) == {} and store.recall("a", ["x"]) == {"x": row()}


def test_the_file_holds_no_request_and_is_bounded(tmp_path: Path) -> None:
    """What was used last stays. Fails without `_evict`, and where a hit does not count as use."""
    limit = 1 << 20
    store = AnswerStore.open(tmp_path, FACTS, limit)
    store.remember("a", {f"planted secret {i}": row() for i in range(100)})
    store.close()
    for night in range(1, 80):
        store = AnswerStore.open(tmp_path, FACTS, limit)
        store._now += night
        assert len(store.recall("a", [f"planted secret {i}" for i in range(100)])) == 100, night
        store.remember("a", {f"{night} {i}": row() for i in range(200)})
        store.close()
    files = list(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in files) < limit * 1.1
    assert not any(b"planted" in file.read_bytes() for file in files)


def test_a_damaged_entry_is_no_entry(tmp_path: Path) -> None:
    """Fails without the checksum: SQLite has none of its own."""
    with AnswerStore.open(tmp_path, FACTS) as store:
        store.remember("a", {"x": row("low"), "y": row("high")})
    database = sqlite3.connect(tmp_path / "answers.sqlite")
    with database:
        database.execute("UPDATE answers SET value = (SELECT value FROM answers ORDER BY key LIMIT 1)")
    database.close()
    with AnswerStore.open(tmp_path, FACTS) as store:
        known = store.recall("a", ["x", "y"])
    assert known in ({"x": row("low")}, {"y": row("high")})  # its own, never the other's


@pytest.mark.parametrize(
    "content",
    [
        *(b"null", b"5", b"{}", b"[]", b"[1,2,3]", b"[" * 100_000, b"\xff", b"[null,null,[]]"),
        *(b'[{"risk":"low"},{"risk":"high"},[]]', b'[{"risk":"low"},{"risk":0.5},5]'),
        b'[{"risk":"low"},{"risk":0.5},[],null,[],{"risk":["high"]}]',
        b'[{"risk":"low"},{"risk":0.5},[],null,[],{"risk":["high",null]}]',
    ],
)
def test_an_entry_that_no_run_wrote_is_no_entry(content: bytes, tmp_path: Path) -> None:
    """Whatever its checksum says."""
    with AnswerStore.open(tmp_path, FACTS) as store:
        store.remember("a", {"x": row()})
        ((key,),) = store._database.execute("SELECT key FROM answers").fetchall()
        value = cache._checksum(key, content) + content
        store._database.execute("UPDATE answers SET value = ?", (value,))
        assert store.recall("a", ["x"]) == {}


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_another_programs_database_is_left_as_it_is(mode: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A table, or a view of no end under the very name."""
    source, file = backlog(tmp_path / "in.parquet"), tmp_path / "cache/answers.sqlite"
    file.parent.mkdir()
    theirs = sqlite3.connect(file, isolation_level=None)
    theirs.execute(f"PRAGMA journal_mode={mode}")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i key, i value FROM n"
    theirs.execute(f"CREATE VIEW answers AS {endless}")
    before = {path.name: path.read_bytes() for path in file.parent.iterdir() if "shm" not in path.name}
    result = route(tiny_bundle, source, tmp_path / "out.parquet", "--cache", str(file.parent))
    assert result.exit_code == 0 and "another program's database" in result.output, result.output
    after = {path.name: path.read_bytes() for path in file.parent.iterdir() if "shm" not in path.name}
    assert after == before
    theirs.close()


@pytest.mark.parametrize(
    "made", ["DROP TABLE answers; CREATE VIEW answers AS SELECT 1", "CREATE TABLE a (b)"]
)
def test_a_store_with_other_tables_is_a_damaged_one(made: str, tmp_path: Path) -> None:
    with AnswerStore.open(tmp_path, FACTS) as store:
        store.remember("a", {"x": row()})
    other = sqlite3.connect(tmp_path / "answers.sqlite")
    other.executescript(made)
    other.close()
    with pytest.raises(sqlite3.DatabaseError, match="something else"):
        AnswerStore.open(tmp_path, FACTS)


def test_what_a_run_has_only_begun_is_a_store(tmp_path: Path) -> None:
    """It was killed after its first page, or is at it."""
    begun = sqlite3.connect(tmp_path / "answers.sqlite", isolation_level=None)
    begun.execute("PRAGMA auto_vacuum=INCREMENTAL")
    begun.close()
    assert (tmp_path / "answers.sqlite").stat().st_size
    for _ in range(2):
        with AnswerStore.open(tmp_path, FACTS) as store:
            store.remember("a", {"x": row()})
            assert store.recall("a", ["x"]) == {"x": row()}


def test_a_damaged_store_takes_nobodys_place(tmp_path: Path) -> None:
    """Each is set aside under a name that is free; when there are many, the next one stays."""
    shared, said = tmp_path / "shared", list[str]()
    emit = lambda event, *, level="info", **facts: said.append(event)  # noqa: E731
    shared.mkdir()
    (shared / "answers.sqlite.damaged").write_text("mine")
    for night in range(12):
        (shared / "answers.sqlite").write_text(f"no database {night}")
        with known_answers(FACTS, tmp_path / "own", text_hashes([b"x"]), shared, 1 << 20, emit) as known:
            assert known.earlier is not None
            known.earlier.remember("a", {"x": row()})
            assert bool(known.earlier.recall("a", ["x"])) == (night < 8)
        for log in shared.glob("*-[ws]*"):
            log.unlink()
    assert (shared / "answers.sqlite.damaged").read_text() == "mine"
    assert len(list(shared.glob("answers.sqlite.damaged-*"))) == 8
    assert (shared / "answers.sqlite").read_text() == "no database 11" and set(said) == {"cache set aside"}


@pytest.mark.parametrize("damage", ["garbage", "truncated", "header", "folder of its own"])
def test_a_damaged_store_costs_the_store_and_not_the_night(
    tiny_bundle: Bundle, tmp_path: Path, damage: str
) -> None:
    """Fails when sqlite3's own errors come through. The next night's store is a new one."""
    source, cache = backlog(tmp_path / "in.parquet"), tmp_path / "cache"
    options = ("--cache", str(cache))
    assert route(tiny_bundle, source, tmp_path / "first.parquet", *options).exit_code == 0
    file = cache / "answers.sqlite"
    match damage:
        case "garbage":
            file.write_bytes(b"not a database" * 100)
        case "truncated":
            os.truncate(file, 5000)
        case "header":
            file.write_bytes(b"\xff" * 60 + file.read_bytes()[60:])
        case "folder of its own":
            file.unlink()
            file.mkdir()
    result = route(tiny_bundle, source, tmp_path / "second.parquet", *options)
    assert result.exit_code == 0 and "Warning: cache set aside" in result.output, result.output
    again = route(tiny_bundle, source, tmp_path / "third.parquet", *options)
    assert again.exit_code == 0 and ("Warning" in again.output) == file.is_dir()
    outputs = [pq.read_table(tmp_path / f"{name}.parquet") for name in ("first", "second", "third")]
    assert outputs[0].equals(outputs[1]) and outputs[0].equals(outputs[2])


def test_a_locked_or_full_store_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another run's: nothing of it is moved, and this run asks its engine."""
    monkeypatch.setattr(cache, "PATIENCE", 0.1)
    said: list[str] = []

    def emit(event: str, *, level: str = "info", **facts: object) -> None:
        said.append(f"{event} {facts['why']}")

    with known_answers(
        FACTS, tmp_path / "own", text_hashes([b"x"]), tmp_path / "shared", 1 << 20, emit
    ) as known:
        assert known.run is not None and known.earlier is not None
        other = sqlite3.connect(tmp_path / "shared/answers.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        for each in known:
            each.remember("a", {"x": row()})  # type: ignore[union-attr]
        assert known.run.recall("a", ["x"]) == {"x": row()} and known.earlier.recall("a", ["x"]) == {}
        other.close()
    assert said == ["cache set aside database is locked"]
    assert sorted(os.listdir(tmp_path / "shared")) == ["answers.sqlite"]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_bytes_flip_the_night_goes_on(tmp_path: Path, seed: int) -> None:
    """SQLite's words on a damaged file may be bytes of it, which are not UTF-8 then."""
    with AnswerStore.open(tmp_path / "shared", FACTS, 1 << 20) as store:
        store.remember("a", {f"text {i}": row() for i in range(50)})
    file, chance = tmp_path / "shared/answers.sqlite", random.Random(seed)
    data = bytearray(file.read_bytes())
    for place in range(100 if seed % 2 else 16, len(data), chance.randrange(40, 200)):
        data[place] ^= 0xFF
    file.write_bytes(data)
    said: list[str] = []
    emit = lambda event, *, level="info", **facts: said.append(event)  # noqa: E731
    with known_answers(
        FACTS, tmp_path / "own", text_hashes([b"x"]), tmp_path / "shared", 1 << 20, emit
    ) as known:
        for each in known:
            each.remember("a", {"x": row()})  # type: ignore[union-attr]
            assert all(found == row() for found in each.recall("a", ["x", "text 3"]).values())  # type: ignore[union-attr]
    assert set(said) <= {"cache set aside"}


@pytest.mark.parametrize("kind", ["link", "folder", "file for a folder"])
def test_where_no_store_can_lie_the_run_does_without(tmp_path: Path, kind: str) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "precious"
    victim.write_text("precious")
    match kind:
        case "link":
            shared.mkdir()
            (shared / "answers.sqlite").symlink_to(victim)
        case "folder":
            (shared / "answers.sqlite").mkdir(parents=True)
        case _:
            shared.write_text("precious")
    said: list[str] = []
    emit = lambda event, *, level="info", **facts: said.append(f"{event} {facts['why']}")  # noqa: E731
    with known_answers(FACTS, tmp_path / "own", text_hashes([b"x"]), shared, 1 << 20, emit) as known:
        for each in known:
            each.remember("a", {"x": row()})  # type: ignore[union-attr]
        assert known.run is not None and known.run.recall("a", ["x"]) == {"x": row()}
    (line,) = said
    assert line.startswith("cache set aside cannot keep answers in") and victim.read_text() == "precious"


@pytest.mark.parametrize("limit", [1, 5])
def test_a_bound_of_next_to_nothing_is_one_too(limit: int, tmp_path: Path) -> None:
    with AnswerStore.open(tmp_path, FACTS, limit) as store:
        store.remember("a", {f"{i} {'x' * 200}": row() for i in range(500)})
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 20_000


def test_a_lower_bound_than_before_holds_too(tmp_path: Path) -> None:
    for limit in (8 << 20, 1 << 20):
        with AnswerStore.open(tmp_path, FACTS, limit) as store:
            store.remember("a", {f"{limit} {i}": row() for i in range(20_000)})
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1 << 20


@pytest.mark.parametrize("limit", [400 << 10, 1 << 20])
def test_the_files_never_outgrow_their_bound(tmp_path: Path, limit: int) -> None:
    """One write of many times the bound, and many small ones: log and entries together, at any moment."""
    with AnswerStore.open(tmp_path, FACTS, limit) as store:
        for night in range(3):
            store.remember("a", {f"{night} {i} {'x' * 200}": row() for i in range(12_000)})
            for i in range(20):
                store.remember("a", {f"{night} {i} {j}": row() for j in range(30)})
            assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= limit
        assert store.recall("a", [f"2 19 {j}" for j in range(30)])


def test_only_this_user_can_read_a_store(tmp_path: Path) -> None:
    with AnswerStore.open(tmp_path / "new", FACTS) as store:
        store.remember("a", {"x": row()})
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert modes == {0o600} and stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "home").write_text("precious")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/answers.sqlite").symlink_to(tmp_path / "home")
    with pytest.raises(InputError):
        AnswerStore.open(tmp_path / "linked", FACTS)
    assert (tmp_path / "home").read_text() == "precious"


def write_and_read(folder: Path, writer: int) -> None:
    with AnswerStore.open(folder, FACTS, 1 << 20) as store:
        for turn in range(40):
            mine = {f"{writer} {turn} {i}": row(str(writer)) for i in range(20)}
            store.remember("a", mine)
            assert all(known == mine[text] for text, known in store.recall("a", list(mine)).items())
            shared = store.recall("a", [f"shared {i}" for i in range(20)])
            assert all(known.answer == {"risk": "shared", "needs_review": True} for known in shared.values())
            store.remember("a", {f"shared {i}": row("shared") for i in range(20)})


def test_runs_share_a_store(tmp_path: Path) -> None:
    """Four at once, evicting meanwhile. Fails without the wait for another's write (database is locked)."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_and_read, args=(tmp_path, writer)) for writer in range(3)]
    for each in writers:
        each.start()
    write_and_read(tmp_path, 3)
    for each in writers:
        each.join(60)
    assert [each.exitcode for each in writers] == [0, 0, 0]
    database = sqlite3.connect(tmp_path / "answers.sqlite")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_repeated_texts_are_found_whatever_the_type(tmp_path: Path) -> None:
    """Fails when nulls count as a text."""
    texts = [b"a", None, b"b", None, b"a", b"\xff", b"b", b"b"]
    found = repeated(text_hashes(texts))
    assert set(found.tolist()) - {0} == {hash(b"a"), hash(b"b")} and np.all(found[:-1] < found[1:])
    assert len(repeated(text_hashes([]))) == 0


def test_only_the_wanted_texts_are_kept(tmp_path: Path) -> None:
    """Fails when `only` is not looked at."""
    with AnswerStore.open(tmp_path, FACTS, only=np.sort(text_hashes([b"x", b"y"]))) as store:
        store.remember("a", {text: row() for text in "wxyz"})
        assert set(store.recall("a", list("wxyz"))) == {"x", "y"}
    assert os.path.exists(tmp_path / "answers.sqlite")
