"""`--retry-errors`: rows in error are run again, all others stay as they were, and a stop in between loses nothing."""

import base64
import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch import run
from batch.adapter.bundle import Bundle
from batch.contract.contract import Contract
from batch.errors import Interrupted
from batch.job import Options
from batch.launch import part_writer
from batch.reporting.observer import Observer
from batch.scoring.lane import ERROR_MESSAGES, TEXT_ERRORS
from batch.storage.output import WRITING
from batch.storage.records import sealed
from batch.storage.workdir import WorkDir
from tests.batch.test_run import HOSTILE, backlog, route, stop_behind_a_shard
from tests.conftest import ROOT, make_bundle

TEXTS = [*HOSTILE, *(f"Please build dashboard number {i}." for i in range(600))]


def manifest_of(output: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(output.with_name(output.name + ".manifest.json").read_text())
    return manifest


def break_rows(output: Path, rows: list[int], bundle: Bundle, code: str = "engine_failure") -> dict[str, Any]:
    """Make a finished output what the same run leaves when its engine fails on `rows`; returns the manifest that was."""
    whole = manifest_of(output)
    table = pq.read_table(output)
    columns = table.to_pydict()
    answer = (
        [f.name for f in bundle.contract.fields]
        + [f"{f.name}_score" for f in bundle.contract.scored_fields]
        + ["score"]
    )
    for row in rows:
        assert columns["status"][row] == "ok"
        columns["status"][row], columns["error_code"][row], columns["error"][row] = (
            "error",
            code,
            ERROR_MESSAGES[code],
        )
        for name in answer:
            columns[name][row] = None
    for index, field in enumerate(table.schema):
        if field.name in (*answer, "status", "error_code", "error"):
            table = table.set_column(index, field, pa.array(columns[field.name], field.type))
    pq.write_table(table, output, **WRITING)
    broken = json.loads(json.dumps(whole))
    broken["output"]["sha256"] = hashlib.sha256(output.read_bytes()).hexdigest()
    broken["run"]["tally"]["errors"][code] = len(rows)
    output.with_name(output.name + ".manifest.json").write_text(json.dumps(sealed(broken)))
    return whole


@pytest.fixture
def job(tiny_bundle: Bundle, tmp_path: Path) -> tuple[Path, Path]:
    """Input and finished output, of which only the texts' own errors are in error."""
    source, output = backlog(tmp_path / "in.parquet", texts=TEXTS), tmp_path / "out.parquet"
    assert route(tiny_bundle, source, output).exit_code == 0
    return source, output


def test_retried_output_is_that_of_a_run_without_failures(
    tiny_bundle: Bundle, job: tuple[Path, Path]
) -> None:
    """Byte for byte, tally and violations included; only the failed rows went to the engine."""
    source, output = job
    good = output.read_bytes()
    whole = break_rows(output, [0, 7, 300, 606], tiny_bundle)
    assert output.read_bytes() != good
    result = route(tiny_bundle, source, output, "--retry-errors")
    assert result.exit_code == 0, result.output
    assert output.read_bytes() == good
    manifest = manifest_of(output)
    assert manifest["run"]["tally"] == whole["run"]["tally"] and manifest["output"] == whole["output"]
    assert manifest["run"]["retried_rows"] == 4 and "rows that were errors" in result.output
    assert not (output.parent / f".{output.name}.work").exists()
    assert route(tiny_bundle, source, output).exit_code == 0, "the job is finished, as before"


def test_rows_that_stay_are_not_computed_again(tiny_bundle: Bundle, job: tuple[Path, Path]) -> None:
    """Values that this engine would not give survive, in every column, down to the bits of the scores."""
    source, output = job
    table = pq.read_table(output)
    scores = pa.array([0.1 + i / 7000 for i in range(table.num_rows)], pa.float32())
    for name in ("tier_score", "score"):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), scores)
    pq.write_table(table, output, **WRITING)
    break_rows(output, [10, 20], tiny_bundle, "truncated")
    assert route(tiny_bundle, source, output, "--retry-errors").exit_code == 0
    made = pq.read_table(output)
    kept = [row for row in range(made.num_rows) if row not in (10, 20)]
    assert made.select(["id", "when", "request", "tags"]).equals(
        table.select(["id", "when", "request", "tags"])
    )
    assert made.take(kept).equals(table.take(kept))
    assert made["status"][10].as_py() == "ok" and made["score"][10].as_py() != table["score"][10].as_py()


def test_sets_of_labels_are_put_in_their_places(tiny_base: Path, tmp_path: Path) -> None:
    contract = Contract.load(ROOT / "tests/data/tickets/contract.toml")
    bundle = make_bundle(tiny_base, contract, tmp_path / "adapters")
    source, output = backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet"
    assert route(bundle, source, output, "--max-error-rate", "1").exit_code == 0
    good, made = output.read_bytes(), pq.read_table(output)
    assert pa.types.is_list(made.schema.field("trades").type)
    answered = [row for row, status in enumerate(made["status"].to_pylist()) if status == "ok"]
    break_rows(output, answered[1:4], bundle)
    result = route(bundle, source, output, "--retry-errors", "--max-error-rate", "1")
    assert result.exit_code == 0, result.output
    assert output.read_bytes() == good


def test_rules_about_sets_are_counted_as_before(tiny_base: Path, tmp_path: Path) -> None:
    """Columns give lists, the contract has tuples. Fails when the rows that stay are read as they are."""
    fields = [
        {"name": "kinds", "type": "labels", "labels": {"app": "", "report": "", "low": ""}},
        {"name": "ok", "type": "boolean"},
    ]
    rules = [{"name": "whole", "when": {"ok": False}, "allow": {"kinds": [["app", "report", "low"]]}}]
    raw = {"name": "s", "prompt": {"system": "Choose.\n{fields}"}, "fields": fields, "rules": rules}
    bundle = make_bundle(tiny_base, Contract.from_dict(raw), tmp_path / "adapters")
    source, output = backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet"
    assert route(bundle, source, output).exit_code == 0
    made, tally = pq.read_table(output).to_pylist(), manifest_of(output)["run"]["tally"]
    assert any(not row["ok"] and len(row["kinds"]) == 3 for row in made)
    break_rows(output, [3, 4], bundle)
    assert route(bundle, source, output, "--retry-errors").exit_code == 0
    assert manifest_of(output)["run"]["tally"] == tally


def test_views_are_carried_through_a_retry(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Arrow can neither filter them nor take from them; inside nested values it cannot write them either, so they are
    written as strings, and the schema of the file says that they are views."""
    texts, view = ["a", None, "c", "d"], pa.string_view()
    struct = pa.struct([("a", pa.string())])
    columns = {
        "id": (list("1234"), pa.string(), view),
        "request": ([f"request {row}" for row in range(4)], pa.string(), view),
        "team": ([None, "nobody", None, "nobody"], pa.string(), view),
        "view": (texts, pa.string(), view),
        "bytes": (texts, pa.binary(), pa.binary_view()),
        "struct": ([text and {"a": text} for text in texts], struct, pa.struct([("a", view)])),
        "list": ([["x", None], None, [], ["y"]], pa.list_(pa.string()), pa.list_(view)),
        "map": ([[("k", "v")], None, [], []], pa.map_(pa.string(), pa.string()), pa.map_(view, view)),
    }
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table = pa.table({name: pa.array(values, kind) for name, (values, kind, _) in columns.items()})
    views = pa.schema([(name, kind) for name, (_, _, kind) in columns.items()])
    with pq.ParquetWriter(source, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(views.serialize().to_pybytes())})
    assert pq.read_schema(source).equals(views)
    options = ("--adapter-column", "team", "--max-error-rate", "1")
    result = route(tiny_bundle, source, output, *options)
    assert result.exit_code == 0, result.output
    good = output.read_bytes()
    result = route(tiny_bundle, source, output, *options, "--retry-errors")
    assert result.exit_code == 0, result.output
    assert output.read_bytes() == good and manifest_of(output)["run"]["retried_rows"] == 2
    made = pq.read_table(output)
    assert made.select(table.column_names).to_pylist() == table.to_pylist()
    assert [made.schema.field(name).type for name in ("view", "bytes")] == [view, pa.binary_view()]


def test_errors_of_the_texts_own_start_no_engine(tiny_bundle: Bundle, job: tuple[Path, Path]) -> None:
    source, output = job
    before = output.read_bytes(), output.stat().st_mtime_ns
    result = route(tiny_bundle, source, output, "--retry-errors", engine="replay")
    assert result.exit_code == 0 and "finished before" in result.output
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before
    assert route(tiny_bundle, source, output, "--retry-errors", "--max-error-rate", "0.001").exit_code == 3
    assert set(ERROR_MESSAGES) > TEXT_ERRORS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--limit", "5"], ["another job's", "limit"]),
        (["--dtype", "bfloat16"], ["another job's", "dtype"]),
    ],
)
def test_another_jobs_output_is_refused(
    tiny_bundle: Bundle, job: tuple[Path, Path], options: list[str], words: list[str]
) -> None:
    source, output = job
    before = output.read_bytes()
    result = route(tiny_bundle, source, output, "--retry-errors", *options)
    assert result.exit_code == 2 and all(word in result.output for word in [*words, "--retry-errors"]), (
        result.output
    )
    assert output.read_bytes() == before


def test_no_finished_output_is_refused(tiny_bundle: Bundle, job: tuple[Path, Path]) -> None:
    source, output = job
    result = route(tiny_bundle, source, output.with_name("none.parquet"), "--retry-errors")
    assert result.exit_code == 2 and "has no manifest" in result.output and "run without it" in result.output
    output.write_bytes(output.read_bytes()[:-1])
    result = route(tiny_bundle, source, output, "--retry-errors")
    assert result.exit_code == 2 and "is not as its manifest says" in result.output


def test_a_stopped_retry_resumes(
    tiny_bundle: Bundle, job: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped behind a shard, the old output stands; run again, the new one is the whole."""
    source, output = job
    good = output.read_bytes()
    break_rows(output, list(range(7, 600)), tiny_bundle)
    broken = output.read_bytes(), manifest_of(output)
    monkeypatch.setattr(part_writer, "SHARD_SECONDS", -1.0)
    options = Options(
        str(source),
        str(output),
        adapter=str(tiny_bundle.path),
        engine="replay",
        max_num_seqs=16,
        retry_errors=True,
    )

    with pytest.raises(Interrupted):
        run.run(options, Observer(progress=stop_behind_a_shard(output, total=593)))
    assert (output.read_bytes(), manifest_of(output)) == broken
    summary = run.run(options)
    assert summary.resumed_rows > 0 and summary.counts.rows < 593
    assert output.read_bytes() == good


@pytest.mark.parametrize("replaced", [False, True])
def test_killed_between_the_old_manifest_and_the_new(
    tiny_bundle: Bundle, job: tuple[Path, Path], replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In that moment there is no manifest, and the output is the old one or the new one: all parts are there."""

    def stop(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGTERM)

    source, output = job
    good, whole = output.read_bytes(), break_rows(output, [9, 11], tiny_bundle)
    failed = output.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("batch.publish.write_manifest", stop)
        assert route(tiny_bundle, source, output, "--retry-errors").exit_code == 143
    assert output.read_bytes() == good and not output.with_name(output.name + ".manifest.json").exists()
    if not replaced:
        output.write_bytes(failed)
    result = route(tiny_bundle, source, output, "--retry-errors")
    assert result.exit_code == 0, result.output
    assert output.read_bytes() == good and manifest_of(output)["output"] == whole["output"]


def test_what_a_finished_retry_left_refuses_nothing(tiny_bundle: Bundle, job: tuple[Path, Path]) -> None:
    """Killed behind the new manifest, its ledger is still there: the next night's job and the next retry go on."""
    source, output = job
    old = {**manifest_of(output)["job"], "retry_of": "0" * 64}
    work = output.parent / f".{output.name}.work"
    for options in (["--retry-errors"], ["--limit", "9", "--max-error-rate", "1"]):
        break_rows(output, [500], tiny_bundle)
        WorkDir.open(work, old).close()
        result = route(tiny_bundle, source, output, *options)
        assert result.exit_code == 0 and not work.exists(), result.output


def test_a_damaged_folder_is_not_retried(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Its retry was stopped, and then a part of it was lost: without it, a run makes the folder whole."""
    source, output = backlog(tmp_path / "in.parquet", rows=50), tmp_path / "out"
    assert route(tiny_bundle, source, output).exit_code == 0
    manifest = json.loads((output / "manifest.json").read_text())
    WorkDir.open(
        tmp_path / ".out.work", {**manifest["job"], "retry_of": manifest["output"]["sha256"]}
    ).close()
    next(output.glob("part-*")).unlink()
    refused = route(tiny_bundle, source, output, "--retry-errors")
    told = f"needs the finished output of this same job: {output} is not as its manifest says; run without it"
    assert refused.exit_code == 2 and told in refused.output, refused.output
    assert route(tiny_bundle, source, output).exit_code == 0 and next(output.glob("part-*"))
    (output / "manifest.json").unlink()
    refused = route(tiny_bundle, source, output, "--retry-errors")
    assert (
        refused.exit_code == 2 and "no manifest, or one that is damaged or was edited; run" in refused.output
    )
