"""What an actor does with its units, without a cluster: once whoever tries, and nothing after the commit."""

import contextlib
import dataclasses
import functools
import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pyarrow.parquet as pq
import pytest

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.cluster import _files, _for_nodes, engine_here
from batch.commit import commit
from batch.engine.replay import FAULTS
from batch.errors import AdapterError
from batch.job import Options, check, work_dir_of
from batch.launch.actor import ATTEMPTS, Told, UnitActor, lost_in
from batch.launch.driver import read_files
from batch.reporting.observer import Observer
from batch.run import plan_of
from batch.storage.folder import job_store, plan_store
from batch.storage.location import Location
from batch.storage.manifest import is_folder
from batch.storage.store import store_at
from batch.storage.workdir import WorkDir, fingerprint
from batch.verify import verify
from tests.batch.test_run import backlog, route


class Cluster:
    """The job that actors work on, and the actors that a test starts."""

    def __init__(self, bundle: Bundle, folder: Path, rows: int, output: str = "") -> None:
        source, output = backlog(folder / "in.parquet", rows=rows), output or str(folder / "out.parquet")
        self.options = Options(str(source), output, str(bundle.path), engine="replay")
        self.digest, self.files = bundle.digest, functools.partial(read_files, _files(bundle))
        job = check(self.options)
        self.sent = dataclasses.replace(_for_nodes(job), threads=2)
        self.plan = plan_of(job)
        self.work = WorkDir.open(work_dir_of(self.options), job.facts)
        self.plan.write(plan_store(output, self.work.path))
        self.store = job_store(output, self.work.path, fingerprint(self.plan.facts))

    @contextlib.contextmanager
    def actor(self, **changed: object) -> Iterator[UnitActor]:
        options = Options(**{**vars(self.sent), **changed})  # type: ignore[arg-type]
        with contextlib.closing(
            UnitActor(functools.partial(engine_here, options, self.digest, self.files))
        ) as made:
            yield made


def side_by_side(*calls: "functools.partial[Told]") -> list[Told]:
    told: list[Told] = []
    threads = [threading.Thread(target=lambda call=call: told.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_two_attempts_at_one_unit_leave_one_part(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """And what came in time is the output, whatever is written after the commit."""
    cluster, output = Cluster(tiny_bundle, tmp_path, rows=2000), tmp_path / "out.parquet"
    with cluster.actor() as one, cluster.actor() as other:
        race(cluster, one, other)
        cluster.work.close()
        commit(str(output), None, 0.0, Observer())
        assert not cluster.work.path.exists()
        before = output.read_bytes()
        assert json.loads(other.score(1)["receipt"])["rows"] == 976
    assert output.read_bytes() == before and verify(str(output), cluster.options.input) == 2000
    assert cluster.work.path.exists()  # leftovers of no job
    assert route(tiny_bundle, tmp_path / "in.parquet", output, "--fresh").exit_code == 0
    assert output.read_bytes() == before and not cluster.work.path.exists()


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_and_in_an_object_store(name: str, s3_bucket: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    output = f"{s3_bucket}/{name}"
    cluster, there = Cluster(tiny_bundle, tmp_path, 2000, output), store_at(Location.of(s3_bucket))
    with cluster.actor() as one, cluster.actor() as other:
        race(cluster, one, other)
        cluster.work.close()
        commit(output, None, 0.0, Observer())
        before = there.names("")
        assert json.loads(other.score(1)["receipt"])["rows"] == 976
    late = set(there.names("")) - set(before)
    # beside a folder's parts lie their receipts, by which who comes late knows that all is done
    left = set() if is_folder(name) else {"attempts", "shards", "receipts"}
    assert {Path(each).parent.name for each in late} == left
    assert verify(output, cluster.options.input) == 2000
    assert route(tiny_bundle, tmp_path / "in.parquet", output, "--fresh").exit_code == 0
    assert len(there.names("")) == len(before)


def race(cluster: Cluster, one: UnitActor, other: UnitActor) -> None:
    """Two actors at unit 0 at once; then one has the rest."""
    first, second = side_by_side(functools.partial(one.score, 0), functools.partial(other.score, 0))
    assert first == second and json.loads(first["receipt"])["rows"] == 1024
    assert len(cluster.store.names("shards")) == 1
    assert json.loads(one.score(0)["receipt"]) == json.loads(first["receipt"])  # not again
    one.score(1)


def test_after_some_attempts_the_rows_are_errors_and_then_the_job_stops(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    cluster = Cluster(tiny_bundle, tmp_path, rows=2500)
    store = cluster.store
    for number in range(ATTEMPTS):
        store.create(f"attempts/00001-{number}", b"")
        store.create(f"attempts/00002-{number}", b"")
    store.create(f"attempts/00002-{ATTEMPTS}", b"")
    with cluster.actor() as actor:
        receipt = json.loads(actor.score(1)["receipt"])
        assert (
            receipt["tally"]["errors"] == {"engine_failure": 1024} and receipt["engine"]["engine"] == "replay"
        )
        assert actor.score(2) == {
            "message": "rows 2048 to 2499 end the process that reads them; mend them in the input, then run again",
            "exit_code": 75,
        }
        assert json.loads(actor.score(0)["receipt"])["tally"]["errors"] == {}
    rows = pq.read_table(store.location(receipt["part"]).path)
    assert set(rows["error_code"].to_pylist()) == {"engine_failure"} and rows["id"][0].as_py() == "r01024"


def test_what_an_actor_is_made_with_is_tiny(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A cluster keeps it for the life of the job, once an actor."""
    cluster = Cluster(tiny_bundle, tmp_path, rows=10)
    assert len(pickle.dumps(functools.partial(engine_here, cluster.sent, cluster.digest))) < 4096


def test_a_refusal_is_told_and_not_tried_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    cluster = Cluster(tiny_bundle, tmp_path, rows=100)
    with cluster.actor(limit=50) as actor:
        told = actor.score(0)
        assert told["exit_code"] == 2 and "another job (" in told["message"] and "limit" in told["message"]
    with cluster.actor(output=str(tmp_path / "elsewhere.parquet")) as actor:
        assert "does not see" in actor.score(0)["message"]


@pytest.mark.parametrize(
    ("faults", "exit_code"), [('{"refuse": ["%s/refused"]}', 2), ("no faults, no engine", 75)]
)
def test_where_an_engine_does_not_start_its_actor_says_so_and_stands_still(
    faults: str, exit_code: int, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor that has started gets units, and one that dies another in its place."""
    cluster = Cluster(tiny_bundle, tmp_path, rows=10)
    (tmp_path / "faults.json").write_text(faults.replace("%s", str(tmp_path)))
    monkeypatch.setenv(FAULTS, str(tmp_path / "faults.json"))
    begin = functools.partial(engine_here, cluster.sent, cluster.digest, cluster.files, "0a1b", lambda: True)
    made = threading.Thread(target=UnitActor, args=(begin,), daemon=True)
    made.start()
    deadline = time.monotonic() + 60
    while not (found := cluster.store.names("attempts")) and time.monotonic() < deadline:
        time.sleep(0.05)
    (name,) = found
    told = json.loads(cluster.store.read(name) or b"")
    assert name.startswith(lost_in("0a1b")) and told["exit_code"] == exit_code and told["restarted"] is True
    made.join(0.5)
    assert made.is_alive()
    cluster.work.finish()
    assert not cluster.work.path.exists()  # a marker is no file of the user's


class Left(BaseException):
    """In the place of the process's end."""


class Leaving(UnitActor):
    def _leave(self) -> NoReturn:
        raise Left


def test_no_call_outlives_the_engine(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when one that comes as the engine is lost tells of it: that ended the whole job, and its nodes' work."""
    cluster = Cluster(tiny_bundle, tmp_path, rows=2000)
    texts = pq.read_table(tmp_path / "in.parquet")["request"].to_pylist()
    (tmp_path / "faults").write_text(json.dumps({"kill": tiny_bundle.renderer.encode_requests(texts)}))
    monkeypatch.setenv(FAULTS, str(tmp_path / "faults"))
    begin = functools.partial(engine_here, cluster.sent, cluster.digest, cluster.files)
    with contextlib.closing(Leaving(begin)) as actor:
        for unit in (0, 1):
            with pytest.raises(Left):
                actor.score(unit)
    assert len(cluster.store.names("attempts/")) == 1, "the second call was no attempt"


def test_a_node_serves_the_base_expanded_from_the_weights_of_the_fit(trained: Bundle, tmp_path: Path) -> None:
    """And is given the original, be it named or not: that is what an adapter is checked against."""
    cluster = Cluster(trained, tmp_path, rows=10)
    assert trained.expansion and cluster.sent.base_model is None
    original = os.path.abspath(trained.original_base())
    named = check(dataclasses.replace(cluster.options, base_model=original))
    assert _for_nodes(named).base_model == original
    for base in (None, original):
        with cluster.actor(base_model=base) as actor:
            assert json.loads(actor.score(0)["receipt"])["rows"] == 10


def test_an_adapter_is_fetched_to_a_node_that_lacks_it(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tiny_bundle, tmp_path, rows=10)
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "node"))
    with pytest.raises(AdapterError):
        Registry().resolve(cluster.digest)
    with cluster.actor(adapter="champion") as actor:
        assert json.loads(actor.score(0)["receipt"])["rows"] == 10
    assert Registry().open(cluster.digest).digest == cluster.digest
