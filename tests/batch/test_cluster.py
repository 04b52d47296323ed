"""`--ray` on a real Ray cluster of two nodes with a fake GPU each, whose engines make their answers up.

One cluster for all: a case starts a driver as a program of its own, and something dies.
"""

import contextlib
import json
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
from tests.batch.test_run import backlog, route
from tests.batch.test_shard import manifest
from tests.faults.test_supervision import text

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
        small = {"object_store_memory": 80 << 20, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, **small})
        self.workers = [self.cluster.add_node(num_cpus=2, num_gpus=1, **small) for _ in range(2)]

    def drive(self, bundle: Bundle, folder: Path, *options: str) -> "subprocess.Popen[str]":
        line = [
            PROGRAM,
            folder / "in.parquet",
            folder / "out.parquet",
            "--adapter",
            bundle.path,
            "--engine",
            "replay",
        ]
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

    def tell(self, bundle: Bundle, delay: float = 0.0, **faults: Sequence[str]) -> None:
        told = {fault: bundle.renderer.encode_requests(texts) for fault, texts in faults.items()}
        self.faults.write_text(json.dumps({"delay": delay, **told}))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("ray")
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "0", "RAY_ADDRESS": "",
        FAULTS: str(folder / "faults.json"),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        made = Nodes(folder)
        patch.delenv(FAULTS)
        yield made
        made.cluster.shutdown()


def receipts(folder: Path) -> int:
    return len(list(folder.glob(".out.parquet.work/receipts/*.json")))


def wait_for(count: int, folder: Path, driver: "subprocess.Popen[str]") -> None:
    while receipts(folder) < count:
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)


def is_as_local(bundle: Bundle, folder: Path) -> None:
    """Byte for byte, and the manifest too but for times and speed."""
    (folder / "local").mkdir()
    whole = folder / "local/out.parquet"
    assert route(bundle, folder / "in.parquet", whole, "--max-num-seqs", "64").exit_code == 0
    assert (folder / "out.parquet").read_bytes() == whole.read_bytes()
    assert manifest(folder / "out.parquet") == manifest(whole)
    assert not list(folder.glob(".out*"))


def test_a_unit_that_ends_its_actor_becomes_error_rows(
    nodes: Nodes, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """The actor is killed each time that it meets the row: as `os._exit`, with nothing said. The others are exact."""
    backlog(tmp_path / "in.parquet", rows=4000)
    nodes.tell(tiny_bundle, parent=[text(1500)])
    driver = nodes.drive(tiny_bundle, tmp_path, "--max-error-rate", "0.2")
    told = driver.communicate(timeout=120)[0]
    assert driver.returncode == 3, told
    made = pq.read_table(tmp_path / "out.parquet")
    assert pc.is_valid(made["error_code"]).to_pylist() == [1024 <= row < 2048 for row in range(4000)]
    assert route(tiny_bundle, tmp_path / "in.parquet", tmp_path / "one.parquet").exit_code == 0
    whole = pq.read_table(tmp_path / "one.parquet")
    assert made.slice(0, 1024).equals(whole.slice(0, 1024)) and made.slice(2048).equals(whole.slice(2048))


def test_a_killed_driver_is_run_again(nodes: Nodes, tiny_bundle: Bundle, tmp_path: Path) -> None:
    backlog(tmp_path / "in.parquet", rows=8000)
    nodes.tell(tiny_bundle, delay=0.1)
    driver = nodes.drive(tiny_bundle, tmp_path)
    wait_for(2, tmp_path, driver)
    driver.kill()
    driver.communicate()
    nodes.tell(tiny_bundle)
    again = nodes.drive(tiny_bundle, tmp_path)
    told = again.communicate(timeout=120)[0]
    assert again.returncode == 0, told
    run = json.loads((tmp_path / "out.parquet.manifest.json").read_text())["run"]
    assert 2048 <= run["resumed_rows"] < 8000
    is_as_local(tiny_bundle, tmp_path)


@pytest.mark.parametrize(
    ("options", "exit_code", "why"),
    [
        (["--ray", "127.0.0.1:1"], 75, "cannot reach a Ray cluster at 127.0.0.1:1: Connection refused; start one"),
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
