"""A scored output as `batch-route` leaves one, made up without an engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from batch.contract.contract import Contract
from tests.conftest import ROOT

Output = Callable[..., Path]


@pytest.fixture
def output(tmp_path: Path, contract: Contract) -> Output:
    """`output(texts, auto=…)` writes the rows' texts with answers from data/v2; ids are r0, r1, …"""
    gold = [json.loads(line) for line in (ROOT / "data/v2/train.jsonl").read_text().splitlines()]

    def make(texts: list[str] | int, auto: int = 0, name: str = "out.parquet") -> Path:
        rows: list[dict[str, Any]] = []
        for index in range(texts if isinstance(texts, int) else len(texts)):
            row = gold[index % len(gold)]
            scores = {f"{field.name}_score": 0.9 for field in contract.scored_fields}
            sure = index < auto
            text = f"{row['request']} Case {index}." if isinstance(texts, int) else texts[index]
            rows.append(
                {
                    "id": f"r{index}",
                    "request": text,
                    **{field.name: row[field.name] for field in contract.fields},
                    **scores,
                    "risk_second": "low" if row["risk"] == "medium" else "medium",
                    "risk_second_score": 0.08,
                    "score": 0.99 if sure else 0.3 + index / 100_000,
                    "status": "ok",
                    "error_code": None,
                    "error": None,
                    "adapter": "0" * 64,
                    "triage": "auto" if sure else "human",
                }
            )
        path = tmp_path / name
        pl.DataFrame(rows, schema_overrides={"error_code": pl.String, "error": pl.String}).write_parquet(path)
        return path

    return make
