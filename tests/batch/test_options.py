"""Options that no run could follow are refused by name before anything is opened: exit 2, one line."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from batch.cli import main


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--max-error-rate", "nan", "not a number in the range"),
        ("--max-error-rate", "inf", "not in the range"),
        ("--engine-timeout", "nan", "not a number in the range"),
        ("--engine-timeout", "inf", "not in the range"),
        ("--engine-timeout", "-inf", "not in the range"),
        ("--cache-max", "0", "not a valid size"),
        ("--cache-max", "1.5G", "not a valid size"),
        ("--threads", "100000", "not in the range"),
        ("--max-num-seqs", "99999999999999999999", "not in the range"),
        ("--work-dir", "", "is a variable unset?"),
        ("--cache", "", "is a variable unset?"),
        ("--report", "", "is a variable unset?"),
        ("--base-model", "", "is a variable unset?"),
        ("--adapter-column", "", "is a variable unset?"),
        ("--work-dir", "s3://bucket/work", "is a URI"),
        ("--cache", "file:///tmp/cache", "is a URI"),
        ("--prefix", "a\udcff", "is not valid UTF-8"),
        ("--id-column", "\udcff", "is not valid UTF-8"),
        ("--adapter", "\udce9t\udce9", "is not valid UTF-8"),
    ],
)
def test_a_value_that_no_run_could_follow(option: str, value: str, why: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["nowhere.parquet", str(tmp_path / "out.parquet"), option, value])
    assert done.exit_code == 2 and not list(tmp_path.iterdir())
    (line,) = done.stderr.splitlines()[-1:]
    assert line.startswith(f"Error: Invalid value for '{option}'") and why in line


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [("--work-dir", "", "is a variable unset?"), ("--report", "s3://bucket/r.html", "is a URI")],
)
def test_commit_refuses_them_too(option: str, value: str, why: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["commit", str(tmp_path / "out.parquet"), option, value])
    assert done.exit_code == 2 and not list(tmp_path.iterdir())
    assert f"Invalid value for '{option}'" in done.stderr and why in done.stderr


@pytest.mark.parametrize("output", ["/", "/..", "//", "a\0.parquet", "", " "])
@pytest.mark.parametrize("rehearse", [False, True])
def test_an_output_that_can_be_none(output: str, rehearse: bool) -> None:
    arguments = ["nowhere.parquet", output, "--engine", "replay", *(["--dry-run"] if rehearse else [])]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2, done.stderr
    why = ("root directory", "NUL byte", "empty path")
    assert any(word in done.stderr.splitlines()[-1] for word in why)
