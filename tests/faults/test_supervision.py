"""The engine dies, hangs, cannot start, or meets a row that kills it: what the run makes of each.

On the replay engine, whose faults are told it by a file; the real vLLM is killed in `test_real_engine.py`. How each
test was shown to fail is in its docstring: the named change was made, the test failed, the change was undone.
"""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batch import run
from batch.adapter.bundle import Bundle
from batch.engine import Completion, EngineSpec, process, supervisor
from batch.engine.process import EngineProcess
from batch.engine.replay import FAULTS
from batch.engine.supervisor import RESTARTS, Supervisor
from batch.errors import EngineError
from batch.job import Options
from batch.reporting.observer import Observer
from batch.scoring.adapters import spec_of
from batch.scoring.router import Counts
from tests.batch.test_run import alive, backlog
from train.dataset import Row
from train.fit.calibrated import answers

ROWS = 300


@pytest.fixture
def faults(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with fault=texts: the replay engine then has that fault with these requests."""

    def tell(delay: float = 0.0, steps: int = 1, **faults: Sequence[str]) -> None:
        file = tmp_path / "faults.json"
        told = {fault: tiny_bundle.renderer.encode_requests(texts) for fault, texts in faults.items()}
        file.write_text(json.dumps({"delay": delay, "steps": steps, **told}))
        monkeypatch.setenv(FAULTS, str(file))

    return tell


def text(row: int) -> str:
    return f"Request {row}: please build a dashboard."


def test_an_engine_out_of_memory_comes_back_with_fewer_requests_at_once(
    tiny_bundle: Bundle, faults: Any
) -> None:
    """The night goes on, slower; another death changes nothing."""
    ids = tiny_bundle.renderer.encode_requests([text(row) for row in range(6)])
    for fault, at_once in (("fail", [32, 16, 8]), ("kill", [32, 32, 32])):
        faults(**{fault: [text(3)]})
        with Supervisor(EngineSpec("replay", "", "", 1000, 4, max_num_seqs=32)) as engine:
            engine.load(spec_of(tiny_bundle))
            seen = [engine.facts["max_num_seqs"]]
            engine.submit(spec_of(tiny_bundle).name, list(enumerate(ids)))
            done: dict[int, Completion] = {}
            while len(done) < len(ids):
                done.update({each.key: each for each in engine.poll()})
                seen.append(engine.facts["max_num_seqs"])
        assert [key for key, each in done.items() if each.finish == "error"] == [3]
        assert list(dict.fromkeys(seen)) == list(dict.fromkeys(at_once))


@pytest.mark.parametrize(
    ("wanted", "room", "served"), [(32, 16, 16), (32, 8, 8), (32, 7, 0), (None, 512, 512)]
)
def test_an_engine_without_memory_at_the_start_is_asked_for_less(
    wanted: int | None, room: int, served: int, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: Any
) -> None:
    """What it was to run at once is known before it starts; 1024 is the replay engine's own choice."""
    (tmp_path / "faults.json").write_text(json.dumps({"room": room}))
    monkeypatch.setenv(FAULTS, str(tmp_path / "faults.json"))
    with Supervisor(EngineSpec("replay", "", "", 1000, 4, max_num_seqs=wanted)) as engine:
        if served:
            engine.load(spec_of(tiny_bundle))
            assert engine.facts["max_num_seqs"] == served and engine.restarts == (2 if served == 8 else 1)
        else:
            with pytest.raises(EngineError, match="out of memory"):
                engine.load(spec_of(tiny_bundle))


def test_steps_that_run_otherwise_than_asked_are_told(tiny_bundle: Bundle) -> None:
    """vLLM goes on without a word where it cannot make one graph of a step."""
    told: list[tuple[str, dict[str, Any]]] = []
    with Supervisor(EngineSpec("replay", "", "", 1000, 4)) as engine:
        engine.emit = lambda event, **facts: told.append((event, facts))
        engine.start()
        assert told == []
        engine.facts.update(cudagraph_wanted="FULL", cudagraph_mode="FULL")
        engine.start()
        assert told == []
        engine.facts.update(cudagraph_mode="FULL_DECODE_ONLY")
        engine.start()
    assert told == [
        ("slower steps", {"level": "warning", "cudagraph_mode": "FULL_DECODE_ONLY", "wanted": "FULL"})
    ]


def test_a_calibration_outlives_its_engine(
    tiny_bundle: Bundle, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit of an hour must not end because its engine did: the row that kills it is one error of many."""
    faults(kill=[text(7), text(31)])
    asked = [Row(str(i), text(i), {}, None, Path("rows"), i) for i in range(40)]
    answered = answers(tiny_bundle, asked, kind="replay")
    assert [row.error_code for row in answered if row.error_code] == ["engine_failure"] * 2
    assert answered[7].error_code and answered[31].error_code


def options(bundle: Bundle, folder: Path, rows: int = ROWS, **more: Any) -> Options:
    source = backlog(folder / "in.parquet", rows)
    return Options(
        str(source),
        str(folder / "out.parquet"),
        adapter=str(bundle.path),
        engine="replay",
        max_num_seqs=16,
        **more,
    )


def codes(folder: Path) -> dict[int, str]:
    made = pq.read_table(folder / "out.parquet", columns=["id", "error_code"])
    assert made["id"].to_pylist() == pq.read_table(folder / "in.parquet")["id"].to_pylist()
    return {row: code for row, code in enumerate(made["error_code"].to_pylist()) if code}


@pytest.mark.parametrize("fault", ["kill", "fail"])
@pytest.mark.parametrize("poison", [[0], [ROWS - 1], [7, 8, 150]], ids=str)
def test_a_poison_row_is_quarantined_and_its_neighbours_are_scored(
    tiny_bundle: Bundle, tmp_path: Path, faults: Any, fault: str, poison: list[int]
) -> None:
    """Fails when `_judge` does not divide, and when no row is ever convicted."""
    faults(**{fault: [text(row) for row in poison]})
    summary = run.run(options(tiny_bundle, tmp_path))
    assert codes(tmp_path) == dict.fromkeys(poison, "engine_failure")
    assert summary.engine["restarts"] <= len(poison) * 10


def test_a_backlog_that_is_one_poison_row(tiny_bundle: Bundle, tmp_path: Path, faults: Any) -> None:
    """Fails when no row is ever convicted: the run gives up."""
    faults(kill=[text(0)])
    run.run(options(tiny_bundle, tmp_path, rows=1))
    assert codes(tmp_path) == {0: "engine_failure"}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_backlog_of_poison_rows_only(count: int, tiny_bundle: Bundle, tmp_path: Path, faults: Any) -> None:
    """As `--retry-errors` has it. Fails when the canary is no witness: it ended in 75, as often as it was run."""
    faults(kill=[text(row) for row in range(count)])
    run.run(options(tiny_bundle, tmp_path, rows=count))
    assert codes(tmp_path) == dict.fromkeys(range(count), "engine_failure")


def test_many_poison_rows_side_by_side_among_more_that_are_sound(
    tiny_bundle: Bundle, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are all found at the end. Fails when rows answered meanwhile do not count: the run never got past them."""
    monkeypatch.setattr(supervisor, "GUILTY", 2)
    texts = [text(row) for row in range(16)]
    faults(kill=texts[5:9])
    ids = tiny_bundle.renderer.encode_requests(texts)
    with Supervisor(EngineSpec("replay", "", "", 1000, 4)) as engine:
        engine.load(spec_of(tiny_bundle))
        engine.submit(tiny_bundle.digest, [(0, ids[0])])
        found = {each.key: each.finish for each in engine.poll()}
        engine.submit(tiny_bundle.digest, list(enumerate(ids))[1:])
        while len(found) < len(texts):
            found |= {each.key: each.finish for each in engine.poll()}
    assert [key for key in sorted(found) if found[key] == "error"] == [5, 6, 7, 8]


def test_a_text_that_was_found_guilty_is_not_tried_again(tiny_bundle: Bundle, faults: Any) -> None:
    """A mail that comes every hour. Fails when the next window with it is searched anew."""
    faults(kill=[text(0)])
    poison, *sound = tiny_bundle.renderer.encode_requests([text(row) for row in range(5)])
    restarts = []
    with Supervisor(EngineSpec("replay", "", "", 1000, 4)) as engine:
        engine.load(spec_of(tiny_bundle))
        for work in ([poison, *sound], [*sound, poison], [poison]):
            engine.submit(tiny_bundle.digest, list(enumerate(work)))
            found: dict[int, str] = {}
            while len(found) < len(work):
                found |= {each.key: each.finish for each in engine.poll()}
            assert [work[key] for key in found if found[key] == "error"] == [poison]
            restarts.append(engine.restarts)
    assert restarts[0] > 0 and len(set(restarts)) == 1


def test_poison_rows_that_are_all_that_is_left(tiny_bundle: Bundle, faults: Any) -> None:
    """After a sound one, with no innocent row among them to tell a sound engine by. Fails when none is asked again as a witness."""
    poison = [text(row) for row in range(3)]
    faults(kill=poison)
    sound, *guilty = tiny_bundle.renderer.encode_requests([text(3), *poison])
    with Supervisor(EngineSpec("replay", "", "", 1000, 4)) as engine:
        engine.load(spec_of(tiny_bundle))
        engine.submit(tiny_bundle.digest, [(0, sound)])
        assert [each.finish for each in engine.poll()] == ["stop"]
        engine.submit(tiny_bundle.digest, list(enumerate(guilty, start=1)))
        found: list[Completion] = []
        while len(found) < len(poison):
            found += engine.poll()
    assert sorted((each.key, each.finish) for each in found) == [(1, "error"), (2, "error"), (3, "error")]


def test_an_engine_that_ends_by_every_row_but_the_first(
    tiny_bundle: Bundle, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answers whenever it is asked again, so deaths alone never end the run. Fails when convictions are not counted."""
    monkeypatch.setattr(supervisor, "GUILTY", 2)
    texts = [text(row) for row in range(6)]
    faults(kill=texts[1:])
    sound, *guilty = tiny_bundle.renderer.encode_requests(texts)
    with Supervisor(EngineSpec("replay", "", "", 1000, 4)) as engine:
        engine.load(spec_of(tiny_bundle))
        engine.submit(tiny_bundle.digest, [(0, sound)])
        assert [each.finish for each in engine.poll()] == ["stop"]
        engine.submit(tiny_bundle.digest, list(enumerate(guilty, start=1)))
        found = 0
        with pytest.raises(EngineError, match="ended 12 times and only 0 rows were finished"):
            while True:
                found += len(engine.poll())
    assert found <= 2


def test_an_engine_that_only_its_canary_survives_is_given_up_soon(
    tiny_bundle: Bundle, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few rows first, which are found guilty; then a window of such. Fails when the canary counts as a row."""
    monkeypatch.setattr(supervisor, "STARTS", 6)
    texts = [text(row) for row in range(60)]
    faults(kill=texts)
    ids = tiny_bundle.renderer.encode_requests(texts)
    with Supervisor(EngineSpec("replay", "", "", 1000, 4)) as engine:
        engine.load(spec_of(tiny_bundle))
        engine.submit(tiny_bundle.digest, list(enumerate(ids[:2])))
        found: list[Completion] = []
        while len(found) < 2:
            found += engine.poll()
        assert {each.finish for each in found} == {"error"}
        engine.submit(tiny_bundle.digest, list(enumerate(ids[2:], start=2)))
        with pytest.raises(EngineError):
            while True:
                engine.poll()
        assert engine.restarts < 20


def test_a_text_that_was_found_guilty_is_told_of_again(tiny_bundle: Bundle, faults: Any) -> None:
    told: list[str] = []
    faults(kill=[text(1)])
    (ids,) = tiny_bundle.renderer.encode_requests([text(1)])
    with Supervisor(EngineSpec("replay", "", "", 1000, 4)) as engine:
        engine.emit = lambda event, **facts: told.append(event)
        engine.load(spec_of(tiny_bundle))
        for key in (0, 1):
            engine.submit(tiny_bundle.digest, [(key, ids)])
            assert [each.finish for each in engine.poll()] == ["error"]
        assert told.count("request quarantined") == 2 and engine.restarts == 2


def test_steps_that_finish_nothing_are_not_waited_for_without_end(
    tiny_bundle: Bundle, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STALLED", 2)
    faults(delay=0.05, steps=10_000)
    with EngineProcess(EngineSpec("replay", "", "", 1000, 4), patience=1.5) as engine:
        engine.load(spec_of(tiny_bundle))
        engine.submit(tiny_bundle.digest, [(0, tiny_bundle.renderer.encode_requests([text(0)])[0])])
        with pytest.raises(EngineError, match="no progress"):
            engine.poll()


def test_a_hung_engine_is_replaced(tiny_bundle: Bundle, tmp_path: Path, faults: Any) -> None:
    """It is stopped outright, so it reads nothing either. Fails when nothing bounds how long a write may block."""
    faults(stop=[text(100)])
    started = time.monotonic()
    run.run(options(tiny_bundle, tmp_path, engine_timeout=3.0))
    assert codes(tmp_path) == {100: "engine_failure"}
    assert time.monotonic() - started < 120


def test_a_slow_engine_is_not_hung(tiny_bundle: Bundle, faults: Any) -> None:
    """Its steps end, and finish no row for longer than its patience; one that does not end in time is a hang.
    Fails when only what is finished counts as progress: the row that would have been answered was quarantined."""
    for delay, steps, finish in ((0.2, 20, "stop"), (9.0, 1, "error")):
        faults(delay=delay, steps=steps)
        with Supervisor(EngineSpec("replay", "", "", 1000, 4), patience=2.0) as engine:
            engine.load(spec_of(tiny_bundle))
            engine.submit(tiny_bundle.digest, [(0, [1, 2, 3])])
            assert [each.finish for each in engine.poll()] == [finish]
            assert (engine.restarts == 0) is (finish == "stop")


def test_a_full_pipe_to_a_stopped_engine_does_not_block(
    tiny_bundle: Bundle, tmp_path: Path, faults: Any
) -> None:
    """Fails without SO_SNDTIMEO: the second write waits for ever."""
    with Supervisor(EngineSpec("replay", "", "", 1000, 4), patience=3.0) as engine:
        engine.load(spec_of(tiny_bundle))
        os.kill(engine.pid, signal.SIGSTOP)
        work = [(key, [1] * 1000) for key in range(1000)]
        engine.submit(tiny_bundle.digest, work)
        done = 0
        while done < len(work):
            done += len(engine.poll())
        assert engine.restarts == 1


def test_an_engine_killed_once_costs_one_restart(tiny_bundle: Bundle, tmp_path: Path, faults: Any) -> None:
    """Fails when what was in flight is not asked again: the run never ends."""
    killed: list[int] = []

    def kill(counts: Counts, total: int) -> None:
        if not killed:
            killed.extend(engines())
            os.kill(killed[0], signal.SIGKILL)

    summary = run.run(options(tiny_bundle, tmp_path, rows=3000, engine_timeout=20.0), Observer(progress=kill))
    assert codes(tmp_path) == {} and summary.engine["restarts"] == 1


def test_one_accident_convicts_nobody(tiny_bundle: Bundle, faults: Any) -> None:
    """The only row in flight when the engine is killed from outside. Fails when a row is convicted of its first death."""
    faults(delay=0.5)
    with Supervisor(EngineSpec("replay", "", "", 1000, 4)) as engine:
        engine.load(spec_of(tiny_bundle))
        engine.submit(tiny_bundle.digest, [(7, [1, 2, 3])])
        os.kill(engine.pid, signal.SIGKILL)
        (done,) = engine.poll()
        assert (done.key, done.finish, engine.restarts) == (7, "stop", 1)


def engines() -> list[int]:
    """Process ids of this process's engines."""
    threads = Path(f"/proc/{os.getpid()}/task").glob("*/children")  # each has those that it started
    return [
        pid
        for pid in (int(pid) for children in threads for pid in children.read_text().split())
        if b"engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes() and alive(pid)
    ]


def test_restarts_end_when_no_row_is_finished(tiny_bundle: Bundle, tmp_path: Path, faults: Any) -> None:
    """Every row kills. Fails when deaths are not counted: it goes on for hours."""
    faults(kill=[text(row) for row in range(ROWS)])
    with pytest.raises(
        EngineError, match=f"{RESTARTS} restarts .* SIGKILL.*; run again to resume"
    ) as gave_up:
        run.run(options(tiny_bundle, tmp_path))
    assert gave_up.value.exit_code == 75 and not (tmp_path / "out.parquet").exists()


def test_an_engine_that_cannot_start_is_told_with_its_last_lines(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: Any
) -> None:
    """Not started again: it was never well. Fails when `load` restarts it."""
    monkeypatch.setenv(FAULTS, str(tmp_path / "missing.json"))
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"FileNotFoundError.*missing\.json") as refused:
        run.run(options(tiny_bundle, tmp_path))
    assert (
        refused.value.exit_code == 75
        and "\n" not in str(refused.value)
        and "restart" not in str(refused.value)
    )
    assert time.monotonic() - started < 20


def test_no_engine_outlives_its_supervisor(tiny_bundle: Bundle) -> None:
    """Fails when `close` leaves a stopped process alone."""
    engine = Supervisor(EngineSpec("replay", "", "", 1000, 4))
    engine.load(spec_of(tiny_bundle))
    os.kill(engine.pid, signal.SIGSTOP)
    pid = engine.pid
    engine.close()
    assert not alive(pid)


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    yield
    assert not engines()
