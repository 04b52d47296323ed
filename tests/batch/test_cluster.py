"""`--ray` on a real Ray cluster of two nodes with a fake GPU each, whose engines make their answers up.

One cluster for all: a case starts a driver as a program of its own, and something dies. What two attempts at one unit and a
late write come to is in `launch/test_actor.py`, which needs no cluster for it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from batch.adapter.bundle import Bundle
from batch.engine.replay import FAULTS
from batch.storage.location import Location
from batch.storage.manifest import manifest_location, read_manifest
from batch.storage.store import store_at
from tests.batch.test_run import backlog, route
from tests.batch.test_shard import agreed
from tests.conftest import reaching
from tests.faults.test_supervision import text
from tests.servers import Weed

ROWS = 5000  # five units
PROGRAM = str(Path(sys.executable).with_name("batch-route"))
# Ray's own: sockets and processes that its helper for tests leaves to the collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


class Nodes:
    """The cluster, and a file of the faults that its engines are to have."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.faults = folder / "faults.json"
        node = {
            "num_cpus": 2,
            "num_gpus": 1,
            "object_store_memory": 80 << 20,
            "include_dashboard": False,
        }
        self.cluster = Cluster(initialize_head=True, head_node_args=node)
        self.second = self.cluster.add_node(**node)

    def drive(
        self, bundle: Bundle, source: Path, output: str | Path, *options: str
    ) -> "subprocess.Popen[str]":
        line = [PROGRAM, source, output, "--adapter", bundle.path, "--engine", "replay"]
        line += ["--ray", self.cluster.address, "--max-num-seqs", "64", *options]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*map(str, line)], **pipes)

    def engines(self) -> list[Path]:
        """Engines' processes, whoever started them, that are to have these faults."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = f"{FAULTS}={self.faults}".encode() in (process / "environ").read_bytes()
                if ours and b"engine.worker" in (process / "cmdline").read_bytes():
                    found.append(process)
        return found

    def tell(
        self, bundle: Bundle, delay: float = 0.0, refuse: Sequence[Path] = (), **faults: Sequence[str]
    ) -> None:
        told = {fault: bundle.renderer.encode_requests(texts) for fault, texts in faults.items()}
        self.faults.write_text(json.dumps({"delay": delay, "refuse": [*map(str, refuse)], **told}))


@pytest.fixture(scope="module")
def nodes(weed: Weed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("ray")
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "0", "RAY_ADDRESS": "",
        FAULTS: str(folder / "faults.json"), **weed.environment,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        made = Nodes(folder)
        patch.delenv(FAULTS)
        yield made
        made.cluster.shutdown()


@pytest.fixture(scope="module")
def local(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run on this machine; its input lies beside it."""
    folder = tmp_path_factory.mktemp("local")
    source = backlog(folder / "in.parquet", rows=ROWS)
    assert route(tiny_bundle, source, folder / "out.parquet", "--max-num-seqs", "64").exit_code == 0
    return folder / "out.parquet"


def wait_for(count: int, work: str | Path, driver: "subprocess.Popen[str]") -> None:
    """Until so many units have a receipt in the folder of a job, or below it."""
    store = store_at(Location.of(work))
    while (
        sum("receipts/0" in name for name in store.names("receipts" if isinstance(work, Path) else ""))
        < count
    ):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)


def is_as_local(output: str | Path, local: Path) -> None:
    """Byte for byte, and the manifest too but for times and speed."""
    assert Location.of(output).open().read() == local.read_bytes()
    made, whole = (read_manifest(manifest_location(str(each))) for each in (output, local))
    assert made and whole and agreed(made) == agreed(whole)


def test_a_unit_that_ends_its_actor_becomes_error_rows(
    nodes: Nodes, tiny_bundle: Bundle, local: Path, tmp_path: Path
) -> None:
    """The actor is killed each time that it meets the row: as `os._exit`, with nothing said. The others are exact."""
    nodes.tell(tiny_bundle, parent=[text(1500)])
    source, output = local.with_name("in.parquet"), tmp_path / "out.parquet"
    driver = nodes.drive(tiny_bundle, source, output, "--limit", "3000")
    told = driver.communicate(timeout=120)[0]
    assert driver.returncode == 3, told
    made, whole = pq.read_table(output), pq.read_table(local)
    assert pc.is_valid(made["error_code"]).to_pylist() == [1024 <= row < 2048 for row in range(3000)]
    assert made.slice(0, 1024).equals(whole.slice(0, 1024))
    assert made.slice(2048).equals(whole.slice(2048, 952))


@pytest.mark.parametrize(("refusing", "exit_code"), [(1, 0), (2, 2)])
def test_an_engine_that_does_not_start_costs_itself_and_only_all_of_them_the_job(
    refusing: int, exit_code: int, nodes: Nodes, tiny_bundle: Bundle, local: Path, tmp_path: Path
) -> None:
    """No unit comes to it, and no other actor is put on its GPU. A rerun would be refused again."""
    nodes.tell(tiny_bundle, refuse=[tmp_path / f"refused-{number}" for number in range(refusing)])
    output = tmp_path / "out.parquet"
    driver = nodes.drive(tiny_bundle, local.with_name("in.parquet"), output)
    told = driver.communicate(timeout=180)[0]
    assert driver.returncode == exit_code and "no GPU answers" in told, told
    assert len(list(tmp_path.glob("refused-*"))) == refusing
    if exit_code == 0:
        is_as_local(output, local)
        assert "engine lost" in told and not list(tmp_path.glob(".out*"))


def test_units_that_wait_for_an_engine_lost_on_the_way_are_scored_by_others(
    nodes: Nodes, tiny_bundle: Bundle, local: Path, tmp_path: Path
) -> None:
    """The cluster starts a dead actor again on its GPU, for the calls that it had; there the engine does not start."""
    source, output, refusal = local.with_name("in.parquet"), tmp_path / "out.parquet", tmp_path / "refused"
    refusal.touch()
    nodes.tell(tiny_bundle, delay=0.1, refuse=[refusal])
    driver = nodes.drive(tiny_bundle, source, output)
    wait_for(1, tmp_path / ".out.parquet.work", driver)
    refusal.unlink()
    status = (nodes.engines()[0] / "status").read_text()
    os.kill(int(status.partition("PPid:")[2].split()[0]), signal.SIGKILL)
    told = driver.communicate(timeout=180)[0]
    assert driver.returncode == 0 and refusal.exists() and "engine lost" in told, told
    is_as_local(output, local)


def test_a_driver_that_dies_is_replaced(
    nodes: Nodes, tiny_bundle: Bundle, local: Path, tmp_path: Path
) -> None:
    """Ray ends its process by a signal of its own now and then. The job's process has no part in that."""
    source, output = local.with_name("in.parquet"), tmp_path / "out.parquet"
    nodes.tell(tiny_bundle, delay=0.1)
    job = nodes.drive(tiny_bundle, source, output)
    wait_for(1, tmp_path / ".out.parquet.work", job)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    (driver,) = (pid for pid in children if b"launch.driver" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(driver), signal.SIGSEGV)
    told = job.communicate(timeout=120)[0]
    assert job.returncode == 0 and "Ray's driver died (signal SIGSEGV" in told, told
    is_as_local(output, local)


def test_a_killed_job_is_run_again_from_what_lies_in_a_store(
    nodes: Nodes,
    weed: Weed,
    tiny_bundle: Bundle,
    local: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nodes without a disk in common: plan, parts and receipts are objects, and so is the output."""
    weed.make("cluster")
    source, output = local.with_name("in.parquet"), "s3://cluster/out.parquet"
    nodes.tell(tiny_bundle, delay=0.1)
    with reaching(weed.environment, tmp_path, monkeypatch):
        driver = nodes.drive(tiny_bundle, source, output)
        wait_for(1, "s3://cluster/.out.parquet.work", driver)
        driver.kill()
        driver.communicate()
        nodes.tell(tiny_bundle)
        again = nodes.drive(tiny_bundle, source, output)
        told = again.communicate(timeout=120)[0]
        assert again.returncode == 0, told
        manifest = read_manifest(manifest_location(output))
        assert manifest and 1024 <= manifest["run"]["resumed_rows"] < ROWS
        is_as_local(output, local)
        names = store_at(Location.of("s3://cluster")).names("")
        assert names == ["out.parquet", "out.parquet.manifest.json"]


def test_an_engine_has_its_gpus_on_one_node(
    nodes: Nodes, tiny_bundle: Bundle, local: Path, tmp_path: Path
) -> None:
    """The two that the cluster has lie on two."""
    output = tmp_path / "out.parquet"
    driver = nodes.drive(tiny_bundle, local.with_name("in.parquet"), output, "--tensor-parallel", "2")
    told = driver.communicate(timeout=60)[0]
    assert driver.returncode == 2 and "no node of the cluster has the 2 CPUs and 2 GPUs" in told, told


def test_a_stopped_driver_and_then_a_lost_node_cost_what_was_in_work(
    nodes: Nodes, tiny_bundle: Bundle, local: Path, tmp_path: Path
) -> None:
    """SIGTERM ends it with 143 and the engines with it, though Ray takes that signal for itself. On the rerun a node goes,
    which is the last case: no other takes its place, so the pool is made anew on what is left."""
    source, output, work = (
        local.with_name("in.parquet"),
        tmp_path / "out.parquet",
        tmp_path / ".out.parquet.work",
    )
    nodes.tell(tiny_bundle, delay=0.2)
    driver = nodes.drive(tiny_bundle, source, output)
    wait_for(1, work, driver)
    driver.send_signal(signal.SIGTERM)
    told = driver.communicate(timeout=60)[0]
    assert driver.returncode == 143 and told.strip().endswith("run again to resume"), told
    deadline = time.monotonic() + 30
    while (left := nodes.engines()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    done = len(list(work.glob("receipts/*.json")))
    for number in range(3):  # stopped as often, with units in work: none of them is the worse for it
        for unit in range(ROWS // 1024):
            (work / f"attempts/{unit:05d}-{number}").write_bytes(b"{}")
    again = nodes.drive(tiny_bundle, source, output)
    wait_for(done + 1, work, again)
    nodes.cluster.remove_node(nodes.second, allow_graceful=False)
    told = again.communicate(timeout=180)[0]
    assert again.returncode == 0, told
    is_as_local(output, local)
    speed = json.loads((tmp_path / "out.parquet.manifest.json").read_text())["run"]["rows_per_second"]
    assert 0 < speed < 2 * 64 / 0.2, "more than the two engines can do"
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("options", "exit_code", "why"),
    [
        (["--ray", "127.0.0.1:1"], 75, "cannot reach a Ray cluster at 127.0.0.1:1: Connection refused; start one"),
        (["--ray", "nowhere"], 2, "--ray nowhere is not the HOST:PORT of a node"),
        (["--ray", "127.0.0.1:1", "--devices", "0,1"], 2, "--devices 0,1 is not known with --ray"),
        (["--ray", "127.0.0.1:1", "--dry-run", "--devices", "0"], 2, "--devices 0 is not known with --ray"),
        (["--ray", "127.0.0.1:1", "--watch"], 2, "--ray"),
        (["--ray", "127.0.0.1:1", "--shard", "0/2"], 2, "--ray"),
        (["--ray", "127.0.0.1:1", "--retry-errors"], 2, "--ray"),
    ],
)  # fmt: skip
def test_what_is_refused(
    options: list[str], exit_code: int, why: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    line = [PROGRAM, str(backlog(tmp_path / "in.parquet")), str(tmp_path / "out.parquet"), "--adapter"]
    line += [str(tiny_bundle.path), "--engine", "replay", *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_code and why in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_without_ray_the_command_that_installs_it_is_told(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = route(tiny_bundle, backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet", "--ray")
    assert result.exit_code == 2 and "pip install 'batch-route[ray]'" in result.output
