"""docs/formats.md: its Python and SQL run as they are printed, on files of the kinds that it names."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import duckdb
import polars as pl
import pytest
from click.testing import CliRunner

from batch.cli import main
from tests.conftest import ROOT

PAGE = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
IN, OUT = PAGE.split("## Out")
TEXTS = ["Find our travel policy.", 'Büro, "Köln" — show the sales.']


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [
        {
            "custom_id": f"r-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "any",
                "messages": [{"role": "system", "content": "Sort."}, {"role": "user", "content": text}],
            },
        }
        for number, text in enumerate(TEXTS)
    ]
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pl.DataFrame({"text": TEXTS}).write_csv("tickets.csv")
    scored = {
        "id": [1, 2, 3],
        "tier": ["a", "a", "b"],
        "score": [0.9, 0.3, 0.2],
        "triage": ["auto", "human", "human"],
    }
    pl.DataFrame(scored).write_parquet("out.parquet")
    return tmp_path


def blocks(kind: str, text: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.S)


def test_openai_batch_lines_by_polars_and_duckdb_are_the_same(folder: Path) -> None:
    exec(blocks("python", IN)[0], {})
    by_polars = pl.read_parquet("requests.parquet")
    duckdb.connect().execute(blocks("sql", IN)[0])
    by_duckdb = pl.read_parquet("requests.parquet")
    assert by_polars.to_dict(as_series=False) == {"id": ["r-0", "r-1"], "request": TEXTS}
    assert by_duckdb.equals(by_polars)
    assert pl.read_parquet("tickets.parquet")["text"].to_list() == TEXTS


def test_lines_of_the_shell(folder: Path) -> None:
    lines = [line for block in blocks("sh", IN) for line in block.splitlines() if line.startswith("python ")]
    assert len(lines) == 2
    for line in lines:
        words = [
            word.replace('_csv("', f'_csv("{ROOT}/').replace('json("', f'json("{ROOT}/')
            for word in shlex.split(line)[1:]
        ]
        subprocess.run([sys.executable, *words], check=True)
    assert pl.read_parquet("tickets.parquet").columns == ["id", "text"]
    assert pl.read_parquet("natural.parquet").columns == ["id", "request"]


def test_outputs_are_read_by_both(folder: Path) -> None:
    con = duckdb.connect()
    count, export = blocks("sql", OUT)[0].strip().split("\n")
    assert con.execute(count).fetchall() == [("a", 1, 0.9)]
    con.execute(export)
    by_duckdb = (folder / "for-people.csv").read_text()
    exec(blocks("python", OUT)[0], {})
    assert (folder / "for-people.csv").read_text() == by_duckdb
    assert [line.split(",")[0] for line in by_duckdb.splitlines()] == ["id", "3", "2"]


@pytest.mark.parametrize("name", ["tickets.csv", "batch.jsonl", "x.tsv", "y.NDJSON"])
def test_an_input_of_such_a_kind_is_refused_with_the_page(folder: Path, name: str) -> None:
    (folder / name).touch()
    (folder / name).write_text((folder / name).read_text() or "id\ttext\n1\thello\n")
    refused = CliRunner().invoke(main, [str(folder / name), "o.parquet"])
    assert refused.exit_code == 2 and "docs/formats.md" in refused.output, refused.output
    assert "read_csv" in refused.output or "read_ndjson" in refused.output
    assert refused.output.count("\n") == 1
