"""`--dry-run`: a time as one would say it, and a refusal as JSON."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from batch.cli import main
from batch.dry_run import _duration


@pytest.mark.parametrize(
    ("rows", "rate", "said"),
    [
        (500, 500, "1 s"),
        (1, 500, "1 s"),
        (0, 500, "0 s"),
        (500, 10, "50 s"),
        (6000, 10, "10 min"),
        (2_000_000, 50, "11.1 h"),
    ],
)
def test_durations(rows: int, rate: float, said: str) -> None:
    assert _duration(rows, rate) == said


def test_a_refusal_is_json_where_that_is_asked_for(tmp_path: Path) -> None:
    told = CliRunner().invoke(main, [str(tmp_path / "no.parquet"), "out.parquet", "--dry-run", "--log-json"])
    assert told.exit_code == 2
    line = json.loads(told.stderr)
    assert line["level"] == "error" and "no.parquet" in line["message"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray", "127.0.0.1:1", "--retry-errors"], "--retry-errors has few rows to score"),
        (["--shard", "0/2", "--fresh"], "--fresh is for a whole run"),
        (["--shard", "0/2", "--retry-errors"], "--retry-errors is for a whole run"),
        (["--shard", "0/2", "--ray", "127.0.0.1:1"], "--ray is for a whole run"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_a_run_refuses_together_is_refused_dry(
    options: list[str], message: str, dry: list[str], tmp_path: Path
) -> None:
    told = CliRunner().invoke(
        main, [str(tmp_path / "no.parquet"), str(tmp_path / "out.parquet"), *options, *dry]
    )
    assert told.exit_code == 2 and message in told.stderr
