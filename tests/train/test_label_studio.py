"""Label Studio's files: candidates out as tasks, annotations in as rows that `lint` and `fit` take."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from batch.contract.contract import Contract
from batch.errors import DatasetError
from tests.conftest import ROOT
from train import label_studio
from train.cli import main
from train.dataset import load_rows

SETS = """
name = "tags"
[prompt]
system = "Answer. {fields}"
[[fields]]
name = "tags"
type = "labels"
[fields.labels]
"a & b" = "one"
"c" = "two"
[[fields]]
name = "note"
type = "text"
"""


def annotated(task: dict[str, Any], **answer: Any) -> dict[str, Any]:
    """As Label Studio exports a task whose prediction was accepted, but for `answer`."""
    results = [dict(result) for result in task["predictions"][0]["result"]]
    for result in results:
        if result["from_name"] in answer:
            (kind,) = result["value"]
            result["value"] = {kind: answer[result["from_name"]]}
    old = {"result": [], "was_cancelled": False}
    return {
        "id": 1,
        "data": task["data"],
        "annotations": [old, {"result": results}, {"result": [], "was_cancelled": True}],
    }


def test_out_and_in_again(tmp_path: Path, contract: Contract) -> None:
    gold = load_rows(ROOT / "data/v1/test.jsonl", contract)[:6]
    lines = [{"id": row.id, "request": row.request, **row.answer, "score": 0.5} for row in gold]
    pl.DataFrame(lines).write_parquet(tmp_path / "out.parquet")
    words = [
        "candidates",
        tmp_path / "out.parquet",
        "--format",
        "label-studio",
        "--contract",
        ROOT / "data/contract.toml",
    ]
    refused = CliRunner().invoke(main, list(map(str, words)))
    assert refused.exit_code == 2 and "--out FILE.json" in refused.output
    result = CliRunner().invoke(main, [*map(str, words), "--out", str(tmp_path / "tasks.json")])
    assert result.exit_code == 0, result.output
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    exported = [annotated(task) for task in tasks[:-1]] + [{**tasks[-1], "annotations": []}]
    (tmp_path / "export.json").write_text(json.dumps(exported))
    rows = load_rows(tmp_path / "export.json", contract, evaluation=True)
    by_id = {row.id: row for row in gold}
    assert len(rows) == len(tasks) - 1 >= 2
    assert all((row.request, row.answer) == (by_id[row.id].request, by_id[row.id].answer) for row in rows)


def test_the_page_has_a_control_for_each_field(contract: Contract) -> None:
    page = ET.fromstring(label_studio.page(contract))
    controls = {each.get("name"): each for each in page if each.get("toName")}
    assert list(controls) == [field.name for field in contract.fields]
    assert [each.get("value") for each in controls["needs_review"]] == ["true", "false"]
    assert controls["reason"].tag == "TextArea"


def test_sets_of_labels_and_what_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(SETS)
    contract = Contract.load(tmp_path / "c.toml")
    (choices,) = [each for each in ET.fromstring(label_studio.page(contract)) if each.tag == "Choices"]
    assert choices.get("choice") == "multiple" and choices[0].get("value") == "a & b"
    row = {"id": 7, "request": "Find it.", "why": ["score 0.10"], "suggested": {"tags": ["c"], "note": "hm"}}
    (task,) = label_studio.tasks([row], contract)
    export = tmp_path / "export.json"
    export.write_text(json.dumps([annotated(task, tags=["a & b", "c"])]))
    (read,) = load_rows(export, contract)
    assert read.answer == {"tags": ["a & b", "c"], "note": "hm"} or read.answer["tags"] == ("a & b", "c")
    for wrong in (
        "{",
        "{}",
        '[{"data": {}}]',
        '[{"annotations": [{"result": [{}]}], "data": {"id": 1, "request": "x"}}]',
    ):
        export.write_text(wrong)
        with pytest.raises(DatasetError, match=r"export"):
            load_rows(export, contract)


def test_a_set_may_stay_empty_where_the_contract_says_so(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(SETS.replace('type = "labels"', 'type = "labels"\noptional = true'))
    contract = Contract.load(tmp_path / "c.toml")
    (choices,) = [each for each in ET.fromstring(label_studio.page(contract)) if each.tag == "Choices"]
    assert choices.get("required") == "false"
    row = {"id": "7", "request": "Find it.", "why": [], "suggested": {"tags": ["c"], "note": "hm"}}
    (task,) = label_studio.tasks([row], contract)
    export = annotated(task)
    results = export["annotations"][1]["result"]
    for left, tags in ((results, ["c"]), ([each for each in results if each["from_name"] != "tags"], [])):
        export["annotations"][1]["result"] = left
        (tmp_path / "export.json").write_text(json.dumps([export]))
        (read,) = load_rows(tmp_path / "export.json", contract)
        assert list(read.answer["tags"]) == tags
    (tmp_path / "needed.toml").write_text(SETS)
    with pytest.raises(DatasetError, match="missing key 'tags'"):
        load_rows(tmp_path / "export.json", Contract.load(tmp_path / "needed.toml"))


def test_a_page_that_is_something_else_is_not_written_over(tmp_path: Path, contract: Contract) -> None:
    row = load_rows(ROOT / "data/v1/test.jsonl", contract)[0]
    line = {"id": row.id, "request": row.request, **row.answer, "score": 0.5}
    pl.DataFrame([line]).write_parquet(tmp_path / "out.parquet")
    words = [
        "candidates",
        str(tmp_path / "out.parquet"),
        "--format",
        "label-studio",
        "--out",
        str(tmp_path / "t.json"),
    ]
    words += ["--contract", str(ROOT / "data/contract.toml")]
    (tmp_path / "t.xml").write_text("my own notes")
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert result.output == (
        f"Error: {tmp_path}/t.xml exists and is not this contract's labelling page; choose another --out\n"
    )
    assert (tmp_path / "t.xml").read_text() == "my own notes" and not (tmp_path / "t.json").exists()
    (tmp_path / "t.xml").unlink()
    for _ in range(2):  # its own it writes again
        assert CliRunner().invoke(main, words).exit_code == 0
