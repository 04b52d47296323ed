"""Shards of one job whose output lies in an object store: processes that share nothing else."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batch.adapter.bundle import Bundle
from batch.storage import folder
from batch.storage.folder import plan_store
from batch.storage.location import Location, write_file
from batch.storage.manifest import (
    is_folder,
    manifest_location,
    output_files,
    read_manifest,
    write_manifest,
)
from batch.storage.store import store_at
from batch.storage.workdir import WorkDir, work_dir
from batch.storage.written_plan import WrittenPlan
from batch.verify import verify
from tests.batch.test_run import backlog, route
from tests.batch.test_shard import PROGRAM, agreed, commit

ROWS = 3000  # three units


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_two_machines_and_a_commit_give_what_one_run_gives(
    name: str, s3_bucket: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """At the same time, each with a cache of its own; a third publishes."""
    source, output = backlog(tmp_path / "in.parquet", rows=ROWS), f"{s3_bucket}/{name}"
    line = [PROGRAM, source, output, "--adapter", tiny_bundle.path, "--engine", "replay"]
    running = [
        subprocess.Popen(
            [*map(str, line), "--shard", f"{index}/2"],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"machine-{index}")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    told = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert read_manifest(manifest_location(output)) is None
    published = commit(output)
    assert published.exit_code == 0, published.output
    assert route(tiny_bundle, source, tmp_path / name).exit_code == 0
    made, whole = (read_manifest(manifest_location(str(each))) for each in (output, tmp_path / name))
    assert made and whole
    files = output_files(output, made), output_files(str(tmp_path / name), whole)
    assert len(files[0]) == (3 if is_folder(name) else 1)
    for there, here in zip(*files, strict=True):
        assert there.open().read() == here.open().read()
    if is_folder(
        name
    ):  # in a store a part stays where it was written, and the folder's digest is of names too
        for each in (made, whole):
            del each["output"]["sha256"]
            for part in each["output"]["parts"]:
                del part["name"]
    assert agreed(made) == agreed(whole)
    assert verify(output, str(source)) == ROWS
    names = store_at(Location.of(s3_bucket)).names("")
    assert len(names) == (3 + 3 + 2 if is_folder(name) else 2) and not any(
        "plan.json" in each for each in names
    )
    again = commit(output)
    assert again.exit_code == 0 and "finished before" in again.output
    late = route(tiny_bundle, source, output, "--shard", "0/2")
    assert late.exit_code == 0 and "complete already" in late.output


def test_the_plan_is_of_the_job_whose_shard_began_last(
    s3_bucket: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Nothing is locked there, and nothing that another job has done is lost."""
    source, output = backlog(tmp_path / "in.parquet", rows=ROWS), f"{s3_bucket}/out"
    nothing = commit(output)
    assert nothing.exit_code == 2 and "no work of shards" in nothing.output
    assert route(tiny_bundle, source, output, "--shard", "0/2").exit_code == 0
    refused = commit(output)
    assert refused.exit_code == 75 and "1 of 3 units are not scored: 1;" in refused.output
    other = route(tiny_bundle, source, output, "--shard", "0/1", "--limit", "1500")
    assert other.exit_code == 0 and "no unit is left" in other.output
    plan = WrittenPlan.read(store_at(Location.of(f"{output}/_parts")))
    assert plan and plan.rows == 1500
    last = route(tiny_bundle, source, output, "--shard", "1/2")
    assert last.exit_code == 0 and "no unit is left" in last.output, last.output
    assert commit(output).exit_code == 0 and verify(output, str(source)) == ROWS
    assert not any("plan.json" in name for name in store_at(Location.of(s3_bucket)).names(""))


def test_a_plain_run_takes_over(s3_bucket: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet", rows=ROWS), f"{s3_bucket}/out.parquet"
    assert route(tiny_bundle, source, output, "--shard", "1/3").exit_code == 0
    result = route(tiny_bundle, source, output)
    told = read_manifest(manifest_location(output))
    assert result.exit_code == 0 and told and told["run"]["resumed_rows"] == 1024
    assert store_at(Location.of(s3_bucket)).names("") == ["out.parquet", "out.parquet.manifest.json"]


def test_what_others_score_stays_while_a_job_is_published(
    s3_bucket: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tonight's shards begin and end, on another machine, between last night's manifest and its last deletion."""
    old, new = backlog(tmp_path / "old.parquet", rows=1500), backlog(tmp_path / "new.parquet", rows=ROWS)
    for output in (f"{s3_bucket}/out", f"{s3_bucket}/out.parquet"):

        def meanwhile(output: str = output) -> None:
            for index in range(2):
                assert route(tiny_bundle, new, output, "--shard", f"{index}/2").exit_code == 0

        sealing_late(meanwhile, tmp_path, monkeypatch)
        assert route(tiny_bundle, old, output).exit_code == 0
        published = commit(output)
        assert published.exit_code == 0, published.output
        assert verify(output, str(new)) == ROWS


def test_what_others_publish_stays_while_a_job_is_published(
    s3_bucket: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job, and the very one that was replaced, whose receipts are there yet."""
    sources = [backlog(tmp_path / f"{rows}.parquet", rows=rows) for rows in (50, 1500, ROWS)]
    output = f"{s3_bucket}/out"
    for others in (sources[2], sources[0]):
        assert route(tiny_bundle, sources[0], output).exit_code == 0

        def meanwhile(others: Path = others) -> None:
            again = route(tiny_bundle, others, output)
            assert again.exit_code == 0, again.output

        sealing_late(meanwhile, tmp_path, monkeypatch)
        assert route(tiny_bundle, sources[1], output).exit_code == 0
        assert verify(output, str(others))
    left = store_at(Location.of(output)).names("_parts")
    assert len([name for name in left if "/shards/" in name]) == 1, left


def sealing_late(meanwhile: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next run wait for others, on another machine, before it removes what it replaced."""
    seal, here = folder.seal, os.environ["XDG_CACHE_HOME"]

    def late(*given: Any) -> None:
        monkeypatch.setattr(folder, "seal", seal)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        meanwhile()
        monkeypatch.setenv("XDG_CACHE_HOME", here)
        seal(*given)

    monkeypatch.setattr(folder, "seal", late)


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_a_job_whose_bytes_are_gone_behind_its_manifest_is_not_complete(
    name: str, s3_bucket: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job that nothing keeps off has removed a part of it, or written over it."""
    source, output = backlog(tmp_path / "in.parquet", rows=ROWS), f"{s3_bucket}/{name}"

    def written(*given: Any, **facts: Any) -> None:
        write_manifest(*given, **facts)
        manifest = read_manifest(manifest_location(output))
        assert manifest
        last = output_files(output, manifest)[-1]
        last.remove() if is_folder(name) else write_file(last, b"another job's")

    with monkeypatch.context() as patched:
        patched.setattr("batch.publish.write_manifest", written)
        result = route(tiny_bundle, source, output)
    assert result.exit_code == 75 and "written by another run meanwhile" in result.output, result.output
    assert read_manifest(manifest_location(output)) is None
    assert route(tiny_bundle, source, output).exit_code == 0 and verify(output, str(source)) == ROWS


def test_a_shard_leaves_nothing_on_its_machine_once_it_is_done(
    s3_bucket: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Unless others are at work there, or have kept rows of a unit: they are taken up."""
    source, output = backlog(tmp_path / "in.parquet", rows=ROWS), f"{s3_bucket}/out"
    path = work_dir(output, None)

    def shard(index: int) -> None:
        result = route(tiny_bundle, source, output, "--shard", f"{index}/3")
        assert result.exit_code == 0, result.output

    shard(0)
    assert list(path.parent.iterdir()) == []
    written = WrittenPlan.read(plan_store(output, path))
    assert written
    WorkDir.open(path, written.facts).close()
    kept = path / "shards/00002-00000-0123456789abcdef.parquet"
    kept.write_bytes(b"another's, that was killed")
    shard(1)
    assert kept.exists() and list(path.parent.iterdir()) == [path]
    with WorkDir.join(path):
        shard(2)  # which has no use for what is damaged
        assert path.exists() and not kept.exists()
    assert commit(output).exit_code == 0
    kept.parent.mkdir(parents=True, exist_ok=True)
    WorkDir.open(path, written.facts).close()
    kept.write_bytes(b"another's, that was killed")
    shard(2)
    assert list(path.parent.iterdir()) == []
