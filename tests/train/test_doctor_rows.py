"""The doctor reads a training file as `fit` does: what that accepts must not fail its checks."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batch.contract.contract import Contract
from batch.errors import DatasetError
from tests.conftest import ROOT
from train.dataset import load_rows
from train.doctor import rows

WHO = {"reviewer": "ann", "reviewed_at": "2026-11-01T10:00:00+00:00"}
DECIDED = {"id": "1", "request": "hello there", "queue": "a", "extra": None, "decision": "label", **WHO}
OTHER = {"id": "3", "request": "second words", "queue": "b", "extra": "x"}
FILES: dict[str, list[dict[str, Any]]] = {
    "a request that was skipped": [DECIDED, {"id": "2", "decision": "skip", **WHO}, {**OTHER, "decision": "label", **WHO}],
    "a request that was decided again": [DECIDED, {**DECIDED, "queue": "b"}, {**OTHER, "decision": "label", **WHO}],
    "no label, as Label Studio writes it": [{"id": "1", "request": "hello there", "queue": "a", "extra": "none of these"}, OTHER],
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle() -> Any:
    labels = {"a": "A", "b": "B"}
    contract = Contract.from_dict(
        {
            "name": "t",
            "prompt": {"system": "x {fields}"},
            "fields": [
                {"name": "queue", "type": "label", "labels": labels},
                {"name": "extra", "type": "label", "labels": {"x": "X", "y": "Y"}, "optional": True},
            ],
        }
    )
    return SimpleNamespace(contract=contract)


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FILES)
def test_the_rows_of_a_fit(name: str, bundle: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", FILES[name])
    read = rows.read(bundle, ROOT / "data/mini-base", path)
    assert read.rows == load_rows(path, bundle.contract) and len(read.rows) == 2
    assert not read.illegal and len(read.examples) == 2


def test_rows_that_the_contract_refuses_are_kept_apart(bundle: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{**OTHER, "queue": "c"}, OTHER])
    read = rows.read(bundle, ROOT / "data/mini-base", path)
    assert [row.line for row in read.rows] == [2] and "rows.jsonl:1: " in str(read.illegal[0])
    path = written(tmp_path / "others.jsonl", [{"text": "hello", "label": "a"}])
    with pytest.raises(DatasetError, match=r"holds no row of this adapter's .*unknown key.*--data"):
        rows.read(bundle, ROOT / "data/mini-base", path)
