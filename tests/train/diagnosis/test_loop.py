"""The whole loop as the README has it: fit, eval, route, on real parts; and with a task that the code has never seen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.contract.contract import Contract
from batch.contract.fields import LIST
from batch.storage.output import output_columns
from tests.conftest import ROOT

BIN = Path(sys.executable).parent
FIELDS = ("tier", "risk", "recommended_platform", "needs_review")


def command(*arguments: str | Path, registry: Path, timeout: float = 600, code: int = 0) -> str:
    """Run one of the installed programs in the project's folder; returns what it printed. It must exit with `code`."""
    environment = {**os.environ, "BATCH_ROUTE_ADAPTERS": str(registry), "COLUMNS": "160"}
    line = [str(BIN / str(arguments[0])), *map(str, arguments[1:])]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_adapter_reaches_the_first_experiment(trained_registry: Path, tmp_path: Path) -> None:
    """4 of 4 valid JSON and at least 19 of 20 field checks on v1's test split; the base, which lacks the policy, does not."""
    report = tmp_path / "eval.json"
    command(
        "batch-train",
        "eval",
        "base,champion",
        "data/v1/test.jsonl",
        "data/regression.jsonl",
        "--json",
        report,
        registry=trained_registry,
    )
    found = {
        (e["adapter"], Path(e["dataset"]).name): e["measures"]
        for e in json.loads(report.read_text())["evaluations"]
    }
    tuned = found["champion", "test.jsonl"]
    assert (tuned["schema-valid"]["count"], tuned["schema-valid"]["of"]) == (4, 4)
    assert tuned["field checks"]["of"] == 20 and tuned["field checks"]["count"] >= 19
    assert found["base", "test.jsonl"]["field checks"]["count"] < tuned["field checks"]["count"]


def test_backlog_is_routed_row_for_row(trained_registry: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    command("batch-route", "data/requests.parquet", output, registry=trained_registry)
    given, made = pq.read_table(ROOT / "data/requests.parquet"), pq.read_table(output)
    assert made.select(given.column_names).equals(given)
    assert made["status"].to_pylist() == ["ok"] * 500
    manifest = json.loads(output.with_name("out.parquet.manifest.json").read_text())
    assert manifest["run"]["engine"]["engine"] == "vllm"
    assert manifest["run"]["prefix_cache_hit_rate"] > 0.8


def test_drafts_change_no_answer_and_save_steps(trained_registry: Path, tmp_path: Path) -> None:
    """Real vLLM with drafts and without: the same answers, the same scores to float tolerance, in fewer steps.

    Two rows at a time: in a batch of all, the steps would be those of the row that came last."""
    found, steps = [], []
    for tokens in ("0", "8"):
        output = tmp_path / f"{tokens}.parquet"
        options = ("--limit", "16", "--max-num-seqs", "2", "--dtype", "float32", "--draft-tokens", tokens)
        command("batch-route", "data/requests.parquet", output, *options, registry=trained_registry)
        found.append(pq.read_table(output).to_pylist())
        steps.append(
            json.loads(Path(f"{output}.manifest.json").read_text())["run"]["engine"]["usage"]["steps"]
        )
    for plain, drafted in zip(*found, strict=True):
        scores = [name for name in plain if name.endswith("score")]
        assert [drafted.pop(name) for name in scores] == pytest.approx(
            [plain.pop(name) for name in scores], abs=1e-4
        )
        assert drafted == plain
    assert steps[1] < 0.8 * steps[0]


@pytest.mark.parametrize("task", ["triage", "tickets"])
def test_another_task_needs_no_change_to_the_code(tiny_base: Path, tmp_path: Path, task: str) -> None:
    """Other fields, trained, judged and served by the same commands: a label of twenty; sets, numbers and null."""
    folder = ROOT / "tests/data" / task
    contract = Contract.load(folder / "contract.toml")
    recipe = (ROOT / "train/mini.toml").read_text().splitlines()
    values = {
        "model": str(tiny_base),
        "contract": str(folder / "contract.toml"),
        "train": str(folder / "train.jsonl"),
        "validation": str(folder / "validation.jsonl"),
    }
    lines = [f'{key} = "{values[key]}"' if (key := line.split(" ")[0]) in values else line for line in recipe]
    lines = [
        "epochs = 1" if line.startswith("epochs") else line for line in lines if not line.startswith("test ")
    ]
    (tmp_path / "task.toml").write_text("\n".join(lines))
    # One epoch on a base of random weights teaches no form: the doctor says so, and the adapter is not made the champion.
    seen = command("batch-train", "fit", tmp_path / "task.toml", registry=tmp_path / "adapters", code=2)
    assert "FAIL  three arms" in seen and "ok    prompt ids" in seen
    assert [path.name for path in (tmp_path / "adapters/aliases").iterdir()] == ["latest"]
    judged = tmp_path / "judged.json"
    command(
        "batch-train",
        "eval",
        "tfidf,latest",
        folder / "validation.jsonl",
        "--json",
        judged,
        registry=tmp_path / "adapters",
    )
    found = json.loads(judged.read_text())["evaluations"]
    assert [each["measures"]["schema-valid"]["share"] for each in found] == [1, 1]
    assert all(field.name in each["macro_f1"] for each in found for field in contract.scored_fields)
    tickets = [json.loads(line)["request"] for line in (folder / "validation.jsonl").read_text().splitlines()]
    pq.write_table(pa.table({"ticket": range(len(tickets)), "body": tickets}), tmp_path / "tickets.parquet")
    names = ("--id-column", "ticket", "--text-column", "body", "--adapter", "latest")
    command(
        "batch-route",
        tmp_path / "tickets.parquet",
        tmp_path / "out.parquet",
        *names,
        registry=tmp_path / "adapters",
    )
    made = pq.read_table(tmp_path / "out.parquet")
    assert made.column_names == ["ticket", "body", *output_columns(contract)]
    for row in made.to_pylist():
        assert row["status"] == "ok"
        contract.serialise(row)  # raises if a value is not legal
        assert all(0 < row[f"{field.name}_score"] <= 1 for field in contract.scored_fields)
        for field in contract.scored_fields:
            if field.arrow == LIST:
                parts = row[f"{field.name}_label_scores"]
                assert len(parts) == len(row[field.name]) and all(0 < part <= 1 for part in parts)
