"""`--shard I/N` and `batch-route commit`: several processes on one job give what one run gives."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from batch.adapter.bundle import Bundle
from batch.cli import main
from batch.commit import ranges
from batch.engine.replay import FAULTS
from batch.errors import Interrupted, OutputLockedError
from batch.job import Options
from batch.reporting.observer import Observer
from batch.scoring.router import Counts
from batch.shard import Left, score_shard
from batch.storage.lock import Lock
from batch.storage.manifest import manifest_location, read_manifest
from batch.storage.store import LocalStore
from batch.storage.workdir import WorkDir
from batch.storage.written_plan import WrittenPlan
from batch.verify import verify
from tests.batch.storage.examples import edited
from tests.batch.test_run import backlog, route

PROGRAM = Path(sys.executable).with_name("batch-route")
SPEED = {  # of the manifest's account of a run: times, speed and who did how much of it
    "id", "finished_at", "resumed_rows", "inferred", "deduplicated", "cached", "rows_per_second", "seconds",
    "prefix_cache_hit_rate", "prompt_tokens", "answer_tokens", "startup_seconds", "seconds_to_first_row",
    "devices", "pace", "warnings",
}  # fmt: skip


def commit(output: str | Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["commit", str(output), *options])


def manifest(output: Path) -> dict[str, Any]:
    told = read_manifest(manifest_location(str(output)))
    assert told
    return agreed(told)


def agreed(told: dict[str, Any]) -> dict[str, Any]:
    """What of their manifests two ways of doing one job must agree on."""
    engine = {
        name: value for name, value in told["run"]["engine"].items() if name not in ("restarts", "usage")
    }
    run = {name: value for name, value in told["run"].items() if name not in SPEED}
    run["mean_score"] = round(run["mean_score"], 9)  # floats, added up in another order
    run["tally"]["score_sum"] = round(run["tally"]["score_sum"], 6)
    return {**told, "run": {**run, "engine": engine}}


def shards(bundle: Bundle, source: Path, output: Path, count: int, *which: int) -> None:
    for index in which or range(count):
        result = route(bundle, source, output, "--shard", f"{index}/{count}")
        assert result.exit_code == 0, result.output


def test_killed_shards_and_a_commit_give_what_one_run_gives(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Four processes, each killed at random moments and started again."""
    source, output = backlog(tmp_path / "in.parquet", rows=7000), tmp_path / "out"
    (tmp_path / "faults.json").write_text('{"delay": 0.02}')
    environment = {**os.environ, FAULTS: str(tmp_path / "faults.json")}
    chance, kills = random.Random(14), 0
    given = [
        PROGRAM,
        source,
        output,
        "--adapter",
        tiny_bundle.path,
        "--engine",
        "replay",
        "--max-num-seqs",
        16,
    ]

    def start(index: int) -> subprocess.Popen[bytes]:
        line = [*map(str, given), "--shard", f"{index}/4"]
        with (tmp_path / f"{index}.log").open("wb") as log:
            return subprocess.Popen(line, env=environment, stdout=log, stderr=log)

    running = {index: start(index) for index in range(4)}
    while running:
        time.sleep(0.05)
        for index, process in list(running.items()):
            if process.poll() == 0:
                del running[index]
            elif process.returncode is not None:
                assert process.returncode == -signal.SIGKILL, (tmp_path / f"{index}.log").read_text()
                running[index] = start(index)
            elif kills < 5 and chance.random() < 0.03:
                process.kill()
                kills += 1
    assert kills == 5
    result = commit(output)
    assert result.exit_code == 0, result.output
    whole = tmp_path / "local/out"
    whole.parent.mkdir()
    assert route(tiny_bundle, source, whole, "--max-num-seqs", "16").exit_code == 0
    assert sorted(os.listdir(output)) == sorted(os.listdir(whole)) and len(os.listdir(output)) == 7 + 2
    for path in whole.glob("*.parquet"):
        assert (output / path.name).read_bytes() == path.read_bytes()
    assert manifest(output) == manifest(whole) and verify(str(output), str(source)) == 7000
    assert not list(tmp_path.glob(".out*"))
    again = commit(output)
    assert again.exit_code == 0 and "finished before" in again.output


def test_commit_names_what_is_missing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet", rows=7000), tmp_path / "out.parquet"
    assert "no work of shards" in commit(output).output and commit(output).exit_code == 2
    shards(tiny_bundle, source, output, 3, 1)
    refused = commit(output)
    assert refused.exit_code == 75 and "5 of 7 units are not scored: 0, 2-3, 5-6" in refused.output
    assert not output.exists()
    shards(tiny_bundle, source, output, 3, 2)
    last = route(tiny_bundle, source, output, "--shard", "0/3")
    assert "no unit is left, publish with: batch-route commit" in last.output
    assert commit(output).exit_code == 0
    whole = tmp_path / "local/out.parquet"
    whole.parent.mkdir()
    assert route(tiny_bundle, source, whole).exit_code == 0
    assert output.read_bytes() == whole.read_bytes() and manifest(output) == manifest(whole)
    done = route(tiny_bundle, source, output, "--shard", "0/3")
    assert done.exit_code == 0 and "complete already" in done.output and not list(tmp_path.glob(".out*"))


def test_a_plain_run_takes_over_what_shards_have_done(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet", rows=3000), tmp_path / "out.parquet"
    shards(tiny_bundle, source, output, 3, 1)
    result = route(tiny_bundle, source, output)
    told = json.loads((tmp_path / "out.parquet.manifest.json").read_text())["run"]
    assert result.exit_code == 0 and told["resumed_rows"] == 1024


def test_a_commit_writes_over_no_manifest_of_others(tiny_bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    assert route(tiny_bundle, backlog(tmp_path / "in.parquet"), output, "--shard", "0/1").exit_code == 0
    manifest = tmp_path / "out.parquet.manifest.json"
    manifest.write_text("mine")
    refused = commit(output)
    assert refused.exit_code == 2 and "move it away" in refused.output and manifest.read_text() == "mine"
    manifest.unlink()
    assert commit(output).exit_code == 0


def test_damaged_parts_are_missing_units(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet", rows=3000), tmp_path / "out.parquet"
    shards(tiny_bundle, source, output, 2)
    part = sorted(tmp_path.glob(".out.parquet.work/shards/*"))[1]
    part.write_bytes(part.read_bytes()[:-9])
    assert "1 of 3 units are not scored: 1;" in commit(output).output
    shards(tiny_bundle, source, output, 2, 1)
    assert commit(output).exit_code == 0 and verify(str(output), str(source)) == 3000


def test_a_file_where_the_work_folder_should_be_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet"
    (tmp_path / ".out.parquet.work").touch()
    for done in (route(tiny_bundle, source, output, "--shard", "0/1"), commit(output)):
        assert done.exit_code == 2 and ".out.parquet.work" in done.output and "move it away" in done.output


def test_a_receipt_of_another_job_counts_for_nothing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A process of an earlier job may come late, to a folder that is another job's by now."""
    source, output = backlog(tmp_path / "in.parquet", rows=2000), tmp_path / "out.parquet"
    receipts = tmp_path / ".out.parquet.work/receipts"
    shards(tiny_bundle, source, output, 2, 1)
    edited(receipts / "00001.json", "job", value="0" * 64, seal=True)
    assert "1 of 2 units" not in commit(output).output and "2 of 2 units" in commit(output).output
    shards(tiny_bundle, source, output, 2)
    assert commit(output).exit_code == 0


@pytest.mark.parametrize(
    ("record", "path", "value", "seal"),
    [
        ("receipts/00000.json", "tally.rows", 49, False),
        ("receipts/00000.json", "tally.score_sum", "much", True),
        ("receipts/00000.json", "size", None, True),
        ("receipts/00000.json", "part", "shards/00000-0000000000000000.parquet", True),
        ("plan.json", "rows", 49, False),
        ("plan.json", "unit_rows", -1, True),
        ("plan.json", "schema", "AAAA", True),
        ("plan.json", "facts.id_column", None, True),
    ],
)
def test_an_edited_receipt_or_plan_is_made_anew(
    record: str, path: str, value: Any, seal: bool, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    source, output = backlog(tmp_path / "in.parquet", rows=50), tmp_path / "out.parquet"
    shards(tiny_bundle, source, output, 1)
    edited(tmp_path / ".out.parquet.work" / record, *path.split("."), value=value, seal=seal)
    refused = commit(output)
    assert refused.exit_code == (2 if record == "plan.json" else 75) and "bug" not in refused.output
    told = "whose plan can be read; run" if record == "plan.json" else "1 of 1 units are not scored: 0; run"
    assert told in refused.output and refused.output.count("\n") == 1, refused.output
    shards(tiny_bundle, source, output, 1)
    assert commit(output).exit_code == 0 and verify(str(output), str(source)) == 50


def test_a_commit_throws_no_work_away_that_has_no_plan(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Last night's output is whole; tonight's plan is damaged, or is not written yet, or is a plain run's."""
    output, work = tmp_path / "out.parquet", tmp_path / ".out.parquet.work"
    assert route(tiny_bundle, backlog(tmp_path / "old.parquet"), output).exit_code == 0
    source = backlog(tmp_path / "new.parquet", rows=2000)
    shards(tiny_bundle, source, output, 2)
    plan = (work / "plan.json").read_bytes()
    for data in (plan[:-9], None):
        (work / "plan.json").unlink()
        if data:
            (work / "plan.json").write_bytes(data)
        refused = commit(output)
        assert refused.exit_code == 2 and "run that job or its shards again" in refused.output
        assert len(list(work.glob("receipts/*.json"))) == 2
        assert bool(data) == (work / "plan.json").exists()
    result = route(tiny_bundle, source, output)
    assert result.exit_code == 0 and re.search(r"rows of an earlier run +│ +2000 ", result.output)
    assert commit(output).exit_code == 0 and verify(str(output), str(source)) == 2000


def test_who_may_work_beside_whom(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Shards of one job together; a whole run, a commit or another job's shard only when none of them lives."""
    source, output = backlog(tmp_path / "in.parquet", rows=2000), tmp_path / "out.parquet"
    shards(tiny_bundle, source, output, 2, 0)
    with WorkDir.join(tmp_path / ".out.parquet.work"):
        shards(tiny_bundle, source, output, 2, 1)
        other = Options(
            str(source), str(output), str(tiny_bundle.path), limit=1500, engine="replay", shard=(0, 2)
        )
        with pytest.raises(OutputLockedError, match="another run"):
            score_shard(other)
        assert route(tiny_bundle, source, output).exit_code == commit(output).exit_code == 4
    score_shard(other)
    plan = WrittenPlan.read(LocalStore(tmp_path / ".out.parquet.work"))
    assert plan and plan.rows == 1500 and list(tmp_path.glob(".out.parquet.work-*"))


def test_the_locks_of_killed_shards_and_runs_are_removed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet", rows=50), tmp_path / "out.parquet"
    left = [tmp_path / f".out.parquet.work{suffix}" for suffix in (".plan.lock", ".lock")]

    def killed() -> None:
        for path in left:
            path.write_text("4194304")

    shards(tiny_bundle, source, output, 1)
    killed()
    with WorkDir.planning(tmp_path / ".out.parquet.work"):
        Lock.clear(left[0])
        assert left[0].exists(), "it is held"
    killed()
    assert commit(output).exit_code == 0 and not list(tmp_path.glob(".out*"))
    for again in (partial(commit, output), partial(route, tiny_bundle, source, output)):
        killed()  # between the manifest, or the last removal, and their own
        assert again().exit_code == 0 and not list(tmp_path.glob(".out*"))
    os.remove(output)
    killed()
    assert route(tiny_bundle, source, output).exit_code == 0 and not list(tmp_path.glob(".out*"))


def test_a_changed_input_is_not_published(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet", rows=2000), tmp_path / "out.parquet"
    shards(tiny_bundle, source, output, 2)
    pq.write_table(pa.concat_tables([pq.read_table(source)]), source)
    refused = commit(output)
    assert refused.exit_code == 2 and "has changed since it was scored" in refused.output
    assert not output.exists()


def test_an_empty_input_has_an_output_too(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, output = backlog(tmp_path / "in.parquet", rows=0), tmp_path / "out.parquet"
    shards(tiny_bundle, source, output, 2)
    assert commit(output).exit_code == 0 and pq.read_table(output).num_rows == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--shard", "4/4"], "is not a shard"), (["--shard", "1"], "is not a shard"),
        (["--shard", "-1/4"], "is not a shard"), (["--shard", "0/0"], "is not a shard"),
        (["--shard", "0/2", "--fresh"], "--fresh"), (["--shard", "0/2", "--retry-errors"], "--retry-errors"),
        (["--shard", "0/2", "--report", "r.html"], "--report"), (["--shard", "0/2", "--watch"], "--shard"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_shard(
    options: list[str], why: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    result = route(tiny_bundle, backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet", *options)
    assert result.exit_code == 2 and why in result.output and "Traceback" not in result.output


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8" and ranges([3]) == "3"
    assert ranges(list(range(0, 100, 2))).endswith("38 and 30 more ranges")


def test_a_stopped_shard_keeps_what_it_has_of_a_unit(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a spot machine that is told to go."""
    (tmp_path / "faults.json").write_text('{"delay": 0.02}')  # or the unit is done before it is told
    monkeypatch.setenv(FAULTS, str(tmp_path / "faults.json"))
    source, output = backlog(tmp_path / "in.parquet", rows=2500), tmp_path / "out.parquet"
    wanted = Options(
        str(source), str(output), str(tiny_bundle.path), engine="replay", max_num_seqs=16, shard=(0, 2)
    )

    def stop(counts: Counts, rows: int) -> None:
        assert rows == 1024 + 452
        if counts.rows > 300:
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        score_shard(wanted, Observer(progress=stop))
    kept = list(tmp_path.glob(".out.parquet.work/shards/00000-00000-*.parquet"))
    rows = sum(pq.read_metadata(path).num_rows for path in kept)
    assert rows and not any(tmp_path.glob(".out.parquet.work/receipts/*"))
    again = Observer()
    assert score_shard(wanted, again) == Left(units=1, of=3)
    assert again.summary.resumed_rows == rows
    shards(tiny_bundle, source, output, 2, 1)
    assert commit(output).exit_code == 0 and verify(str(output), str(source)) == 2500
