"""Several engines on one queue of units: every row once, whichever dies, and as one engine would have it."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch import parent, run
from batch.adapter.base_model import check_divides
from batch.adapter.bundle import Bundle
from batch.engine.replay import FAULTS
from batch.engine.supervisor import Supervisor
from batch.errors import AdapterError, EngineError, InputError, Interrupted, StorageError
from batch.job import Options, check
from batch.launch import worker
from batch.launch.devices import placements, visible_gpus
from batch.launch.part_writer import PartWriter
from batch.launch.worker import LOOK_SECONDS, Units
from batch.reporting.observer import Observer
from batch.storage.store import LocalStore
from batch.storage.units import Cursor, Plan
from tests.batch.test_run import backlog, route
from tests.faults.test_supervision import engines


def options(bundle: Bundle, folder: Path, rows: int = 6000, **more: object) -> Options:
    source = backlog(folder / "in.parquet", rows=rows)
    return Options(
        str(source),
        str(folder / "out.parquet"),
        adapter=str(bundle.path),
        engine="replay",
        devices="2",
        **more,  # type: ignore[arg-type]
    )


def test_two_engines_give_what_one_gives(tiny_bundle: Bundle, tmp_path: Path) -> None:
    summary = run.run(options(tiny_bundle, tmp_path, max_num_seqs=64))
    assert route(tiny_bundle, tmp_path / "in.parquet", tmp_path / "one.parquet").exit_code == 0
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert len(summary.devices) == 2 and sum(each.counts.rows for each in summary.devices.values()) == 6000
    told = json.loads((tmp_path / "out.parquet.manifest.json").read_text())["run"]["devices"]
    assert sum(each["rows"] for each in told.values()) == 6000 and {"restarts", "idle_seconds"} <= set(
        told["0"]
    )


def test_killed_engines_lose_and_double_nothing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    chance, kills = random.Random(5), 0

    def kill(counts: object, total: int) -> None:
        nonlocal kills
        if kills < 5 and chance.random() < 0.02 and (found := engines()):
            os.kill(chance.choice(found), signal.SIGKILL)
            kills += 1

    summary = run.run(options(tiny_bundle, tmp_path, rows=12_000, max_num_seqs=16), Observer(progress=kill))
    made = pq.read_table(tmp_path / "out.parquet", columns=["id", "status"])
    assert made["id"].to_pylist() == pq.read_table(tmp_path / "in.parquet")["id"].to_pylist()
    assert kills and summary.engine["restarts"] >= 1 and set(made["status"].to_pylist()) == {"ok"}


def test_one_that_does_not_get_well_leaves_its_units_to_the_other(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where none is left the run fails, resumable."""
    honest = run.wanted_engines
    lost = ((FAULTS, str(tmp_path / "missing.json")),)

    def broken(*which: int):  # type: ignore[no-untyped-def]
        def specs(job):  # type: ignore[no-untyped-def]
            made = honest(job)
            return [
                dataclasses.replace(spec, environment=lost) if index in which else spec
                for index, spec in enumerate(made)
            ]

        return specs

    wanted = options(tiny_bundle, tmp_path)
    monkeypatch.setattr(run, "wanted_engines", broken(0, 1))
    with pytest.raises(EngineError, match="run again to resume"):
        run.run(wanted)
    monkeypatch.setattr(run, "wanted_engines", broken(0))
    summary = run.run(wanted)
    assert list(summary.devices) == [1] and summary.tally.rows == 6000


REFUSING = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from batch.engine import worker
from batch.errors import InstallationError
def refuse(spec):
    raise InstallationError("no GPU answers")
if os.path.exists(os.environ.get("REFUSE", "")):
    worker.build = refuse
worker.serve(*sys.argv[3:])
"""


def refusing(monkeypatch: pytest.MonkeyPatch, when: Path, *which: int) -> None:
    """Have these engines find no GPU when they start while the file is there."""
    honest = run.wanted_engines

    def specs(job):  # type: ignore[no-untyped-def]
        told = (("REFUSE", str(when)),)
        return [
            dataclasses.replace(spec, environment=told) if index in which else spec
            for index, spec in enumerate(honest(job))
        ]

    monkeypatch.setattr(parent, "BOOT", REFUSING)
    monkeypatch.setattr(run, "wanted_engines", specs)


def test_one_gpu_of_several_that_does_not_answer_costs_only_its_engine(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    when = tmp_path / "lost"
    when.touch()
    with monkeypatch.context() as all_of_them:
        refusing(all_of_them, when, 0, 1)
        with pytest.raises(AdapterError, match="no GPU answers"):  # a rerun would meet the same
            run.run(options(tiny_bundle, tmp_path))
    refusing(monkeypatch, when, 1)
    summary = run.run(options(tiny_bundle, tmp_path))
    assert list(summary.devices) == [0] and summary.tally.rows == 6000


@pytest.mark.parametrize("devices", ["1", "2"])
def test_a_gpu_lost_on_the_way_is_no_refusal(
    devices: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    when, killed = tmp_path / "lost", list[int]()
    refusing(monkeypatch, when, 0)
    wanted = dataclasses.replace(options(tiny_bundle, tmp_path, max_num_seqs=16), devices=devices)
    first = Supervisor.start

    def start(supervisor: Supervisor) -> None:
        first(supervisor)
        if dict(supervisor._spec.environment).get("REFUSE"):
            killed.append(supervisor.pid)

    def kill(counts: object, total: int) -> None:
        if killed and not when.exists():
            when.touch()
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Supervisor, "start", start)
    if devices == "1":
        with pytest.raises(EngineError, match="no GPU answers"):
            run.run(wanted, Observer(progress=kill))
        when.unlink()
    summary = run.run(wanted, Observer(progress=kill) if devices == "2" else Observer())
    assert summary.tally.rows == 6000 and summary.tally.error_rows == 0


def test_a_signal_stops_all_and_keeps_what_is_done(tiny_bundle: Bundle, tmp_path: Path) -> None:
    def stop(counts: object, total: int) -> None:
        if any(tmp_path.glob(".out.parquet.work/receipts/*.json")):
            raise Interrupted(signal.SIGTERM)

    wanted = options(tiny_bundle, tmp_path, rows=40_000, max_num_seqs=16)
    with pytest.raises(Interrupted):
        run.run(wanted, Observer(progress=stop))
    assert engines() == []
    summary = run.run(wanted)
    assert summary.resumed_rows >= 1024 and summary.resumed_rows + summary.counts.rows == 40_000


def test_rows_are_scored_while_a_part_is_written(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part waits until the next unit has all its rows."""
    finish, add, further = PartWriter.finish, PartWriter.add, threading.Event()

    def slow(part: PartWriter, *rest: Any) -> Any:
        if part.unit.index == 0:
            assert further.wait(60)
        return finish(part, *rest)

    def noted(part: PartWriter, scored: Any) -> None:
        add(part, scored)
        if part.unit.index == 1 and part.full:
            further.set()

    monkeypatch.setattr(PartWriter, "finish", slow)
    monkeypatch.setattr(PartWriter, "add", noted)
    summary = run.run(dataclasses.replace(options(tiny_bundle, tmp_path, max_num_seqs=64), devices="1"))
    assert summary.tally.rows == 6000 and further.is_set()


@pytest.mark.parametrize("devices", ["1", "2"])
def test_a_silent_store_does_not_keep_a_run_from_stopping(
    devices: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had for the store is kept on this machine, and the next run finds it even if the store answers the
    first one meanwhile."""
    create, asked, answers = LocalStore.create, threading.Event(), threading.Event()

    def silent(store: LocalStore, name: str, data: bytes) -> bool:
        if name.startswith("receipts/"):
            asked.set()
            assert answers.wait(60)
        return create(store, name, data)

    def stop() -> None:
        if asked.wait(60):
            os.kill(os.getpid(), signal.SIGTERM)

    wanted = dataclasses.replace(options(tiny_bundle, tmp_path, max_num_seqs=16), devices=devices)
    monkeypatch.setattr(worker, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(LocalStore, "create", silent)
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Interrupted):
        run.run(wanted)
    assert not answers.is_set() and engines() == []
    kept = sorted(tmp_path.glob(".out.parquet.work/shards/*.parquet"))
    assert sum(pq.read_metadata(path).num_rows for path in kept) >= 1024
    threads = {thread for thread in threading.enumerate() if thread.name.endswith("(run)")}
    assert threads and all(thread.daemon for thread in threads)
    answers.set()
    for thread in threads:
        thread.join(60)
    assert sorted(tmp_path.glob(".out.parquet.work/shards/*.parquet")) == kept
    summary = run.run(wanted)
    assert summary.resumed_rows >= 1024 and summary.resumed_rows + summary.counts.rows == 6000


def test_a_unit_that_is_written_after_it_was_given_back_is_counted_once(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine of two is lost while its part is on the way, and the other scores that unit again: others would wait
    for a unit that nobody has, or not for one that may come back."""
    write, give_back, poll = worker.Worker._write, Units.give_back, Supervisor.poll
    lost, given, counted = list[object](), threading.Event(), list[Units]()

    def late(writer: worker.Worker, part: PartWriter, units: Units) -> Any:
        if not lost:
            lost.append(writer.engine)
            counted.append(units)
            assert given.wait(60)
        return write(writer, part, units)

    def noted(units: Units, *rest: Any) -> None:
        give_back(units, *rest)
        given.set()

    def failing(engine: Supervisor) -> Any:
        if engine in lost:
            raise EngineError("it is lost")
        return poll(engine)

    monkeypatch.setattr(worker, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(worker.Worker, "_write", late)
    monkeypatch.setattr(Units, "give_back", noted)
    monkeypatch.setattr(Supervisor, "poll", failing)
    summary = run.run(options(tiny_bundle, tmp_path, max_num_seqs=16, deadline=60.0))
    assert given.is_set() and summary.tally.rows == 6000
    for thread in threading.enumerate():
        if thread.name.endswith("(run)"):
            thread.join(60)
    assert [units._taken for units in counted] == [0]


@pytest.mark.parametrize("unit", [2, 5])
@pytest.mark.parametrize("devices", ["1", "2"])
def test_a_part_that_cannot_be_written_ends_all_and_keeps_its_rows(
    devices: str, unit: int, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = PartWriter.finish

    def full(part: PartWriter, *rest: Any) -> Any:
        if part.unit.index == unit:
            time.sleep(LOOK_SECONDS * 1.5)
            raise StorageError("the disk is full; make room, then run again")
        return finish(part, *rest)

    wanted = dataclasses.replace(options(tiny_bundle, tmp_path, max_num_seqs=64), devices=devices)
    monkeypatch.setattr(PartWriter, "finish", full)
    with pytest.raises(StorageError, match="the disk is full"):
        run.run(wanted)
    monkeypatch.setattr(PartWriter, "finish", finish)
    summary = run.run(wanted)
    assert summary.resumed_rows >= 3 * 1024 and summary.resumed_rows + summary.counts.rows == 6000


@pytest.mark.parametrize(
    ("wanted", "gpus", "seen"),
    [
        (None, "", [None]), ("all", "", [None]), (None, "0,1,2", ["0", "1", "2"]), ("2", "4,5,7", ["4", "5"]),
        ("0,2", "4,5,7", ["4", "7"]), ("all", "3", ["3"]), ("0,0,2", "4,5,7", ["4", "4", "7"]),
    ],
)  # fmt: skip
def test_which_devices(
    wanted: str | None, gpus: str, seen: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    found = [dict(each["environment"]) for each in placements(wanted, None)]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in found] == seen
    if len(found) > 1:
        assert len({each["VLLM_PORT"] for each in found}) == len(found)
        assert len({each["VLLM_CACHE_ROOT"] for each in found}) == len(set(seen))
    assert [each["sharing"] for each in placements(wanted, None)] == [seen.count(gpu) for gpu in seen]


def test_the_parts_of_a_divided_gpu_are_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-6f1c)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-77aa)
  MIG 3g.40gb     Device  0: (UUID: MIG-0c5e)
  MIG 3g.40gb     Device  1: (UUID: MIG-9d21)
"""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = SimpleNamespace(stdout=listed)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: told)
    assert visible_gpus() == ["0", "MIG-0c5e", "MIG-9d21"]


@pytest.mark.parametrize("given", [None, "1,0"])
def test_a_gpus_number_is_the_one_of_who_gave_it(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA numbers the fastest first, `nvidia-smi` the first on the bus."""
    listed = "GPU 0: NVIDIA T4 (UUID: GPU-6f1c)\nGPU 1: NVIDIA H100 (UUID: GPU-77aa)\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=listed))
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    found = [dict(each["environment"]) for each in placements("all", None)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == (given or "0,1").split(",")
    assert {each.get("CUDA_DEVICE_ORDER") for each in found} == {None if given else "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("wanted", "gpus"),
    [("0", ""), ("many", ""), ("0,1", ""), ("999", ""), ("3", "0,1"), ("0,2", "0,1")],
)
def test_devices_that_are_not_there(wanted: str, gpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    with pytest.raises(InputError, match="--devices"):
        placements(wanted, None)


def test_the_plan_of_500_million_rows_holds_nothing() -> None:
    plan = Plan.of(500_000_000)
    assert plan.unit_rows == 65_536 and len(plan) == 7630
    assert sum(unit.rows for unit in plan) == 500_000_000 and plan[7629].stop == 500_000_000
    assert [Plan.of(rows).unit_rows for rows in (0, 1, 1024 * 1024, 2_000_000)] == [1024, 1024, 1024, 2048]


def test_a_cursor_reads_ranges_in_one_pass() -> None:
    """Units that others take lie between: decoded and dropped, whatever the batches; a step back opens anew."""
    opened: list[int] = []

    def batches(start: int) -> Iterator[pa.RecordBatch]:
        opened.append(start)
        for first in range(start, 1000, 7):
            yield pa.record_batch({"id": pa.array(range(first, min(1000, first + 7)))})

    cursor = Cursor(batches)

    def read(start: int, stop: int) -> list[int]:
        return [row for batch in cursor.read(start, stop) for row in batch["id"].to_pylist()]

    for start, stop in ((0, 10), (10, 20), (40, 50), (55, 56), (300, 1000)):
        assert read(start, stop) == list(range(start, stop))
    assert opened == [0]
    assert read(20, 30) == list(range(20, 30)) and opened == [0, 20]


def test_units_come_back_from_who_cannot_score_them() -> None:
    units = Units(Plan(4, 2))
    first, second = units.take(), units.take()
    assert first and second and units.take() is None
    units.give_back([first])
    assert units.more() and units.take() == first
    units.done()
    units.done()
    assert not units.more()


@pytest.mark.parametrize(
    ("wanted", "gpus", "seen"),
    [
        (None, "0,1", ["0,1"]), ("all", "0,1,2,3", ["0,1", "2,3"]), ("2", "4,5,6,7", ["4,5"]),
        ("0,1,2,3", "4,5,6,7", ["4,5", "6,7"]), ("1,3", "GPU-a,GPU-b,GPU-c,GPU-d", ["GPU-b,GPU-d"]),
    ],
)  # fmt: skip
def test_an_engine_spans_neighbouring_devices(
    wanted: str | None, gpus: str, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    found = placements(wanted, None, 2)
    assert [dict(each["environment"])["CUDA_VISIBLE_DEVICES"] for each in found] == seen
    assert {each["tensor_parallel"] for each in found} == {2}


@pytest.mark.parametrize(("wanted", "gpus", "span"), [(None, "0,1,2", 2), ("1", "0,1", 2), ("all", "0,1", 4)])
def test_devices_that_an_engine_cannot_span(
    wanted: str | None, gpus: str, span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    with pytest.raises(InputError, match=f"--tensor-parallel {span} does not divide"):
        placements(wanted, None, span)


def test_the_parts_of_an_engine_on_a_cpu_are_bound_to_cores_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3, 5, 7, 9})
    bound = "VLLM_CPU_OMP_THREADS_BIND"
    (one,) = placements(None, None, 2)
    assert dict(one["environment"]) == {bound: "1,3|5,7"}
    two = placements("2", None, 2)
    assert [dict(each["environment"])[bound] for each in two] == ["1|3", "5|7"]
    for wanted, span in ((None, 6), ("3", 2)):
        with pytest.raises(InputError, match="this machine has"):
            placements(wanted, None, span)


@pytest.mark.parametrize(
    ("heads", "kept", "width", "span", "refused"),
    [
        (32, 8, 9728, 2, None), (32, 8, 9728, 8, None), (32, 8, 9728, 16, None), (4, 2, 640, 4, None),
        (32, 8, 9728, 3, "num_attention_heads"), (9, 3, 1536, 9, "intermediate_size"), (12, 8, 96, 6, "num_key_value_heads"),
        (9, 3, 1536, 2, "num_attention_heads"),
    ],
)  # fmt: skip
def test_a_base_that_cannot_be_divided_is_refused(
    heads: int, kept: int, width: int, span: int, refused: str | None, tmp_path: Path
) -> None:
    config = {"num_attention_heads": heads, "num_key_value_heads": kept, "intermediate_size": width}
    for told in (config, {"text_config": config, "num_attention_heads": 7}):
        (tmp_path / "config.json").write_text(json.dumps(told))
        if refused is None:
            check_divides(tmp_path, span)
        else:
            with pytest.raises(InputError, match=f"--tensor-parallel {span} does not divide the {refused}"):
                check_divides(tmp_path, span)


def test_an_engine_is_told_how_many_devices_it_spans(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And options that exclude each other are refused before one starts."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    wanted = dataclasses.replace(options(tiny_bundle, tmp_path), devices="all", tensor_parallel=2)
    specs = run.wanted_engines(check(wanted))
    assert [spec.tensor_parallel for spec in specs] == [2, 2]
    for change, said in (
        ({"tensor_parallel": 3}, "num_attention_heads|GPUs"),
        ({"draft_tokens": 4}, "exclude"),
    ):
        with pytest.raises(InputError, match=said):
            check(dataclasses.replace(wanted, **change))  # type: ignore[arg-type]
