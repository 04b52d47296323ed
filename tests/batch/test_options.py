"""Options that no run could follow are refused by name before anything is opened: exit 2, one line."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from batch.adapter.bundle import Bundle
from batch.cli import main
from tests.batch.test_run import backlog
from train.cli import main as train


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in.parquet"], "Missing argument 'OUTPUT'."),
        (["in.parquet", "out.parquet", "--limi", "3"], "No such option '--limi'. Did you mean '--limit'?"),
        (["in.parquet", "out.parquet", "--limit", "x"], "Invalid value for '--limit': 'x' is not a valid integer range."),
        (["commit"], "Missing argument 'OUTPUT'."),
        (["a.parquet", "b.parquet", "--shard", "0/1", "--report", "r.html"], "--report is for a whole output; give it to `batch-route commit`"),
    ],
)  # fmt: skip
def test_what_is_refused_before_a_run_is_a_json_line_where_that_is_asked_for(
    words: list[str], message: str
) -> None:
    done = CliRunner().invoke(main, [*words, "--log-json"])
    (line,) = done.stderr.splitlines()
    told = json.loads(line)
    assert done.exit_code == 2 and (told["event"], told["level"], told["message"]) == (
        "error",
        "error",
        message,
    )
    assert done.stdout == "" and "Error" in CliRunner().invoke(main, words).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--log-json", "nosuch"], "No such command 'nosuch'."),
        (["--log-json", "promote"], "Missing argument 'ADAPTER'."),
        (["promote", "--log-json"], "No such option '--log-json'."),
    ],
)
def test_and_so_of_a_command_in_a_group(words: list[str], message: str) -> None:
    done = CliRunner().invoke(train, words)
    told = json.loads(done.stderr)
    assert done.exit_code == told["exit_code"] == 2 and told["message"] == message


@pytest.mark.parametrize("option", ["--metrics", "--report"])
def test_a_folder_is_no_file_to_write(option: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["in.parquet", "out.parquet", option, f"{tmp_path}/reports/"])
    assert done.exit_code == 2 and "reports/ is a folder; name a file in it" in done.stderr
    assert os.listdir(tmp_path) == []


def test_no_name_that_is_refused_is_obeyed_by_a_terminal() -> None:
    name = "a\x1b]0;title\x07\r\n\u202e.parquet"
    for words in (["a.parquet", "b.parquet", name], ["--limit", name], [f"--{name}"], ["commit", "x", name]):
        done = CliRunner().invoke(main, words)
        told = done.stderr.splitlines()[-1]
        assert (
            done.exit_code == 2 and r"\x1b]0;title\x07" in told and told.replace("\u202e", "").isprintable()
        )
        assert "\u202e" not in told


@pytest.mark.parametrize("output", ["/", "/..", "//", "a\0.parquet", "", " "])
@pytest.mark.parametrize("rehearse", [False, True])
def test_an_output_that_can_be_none(output: str, rehearse: bool) -> None:
    arguments = ["nowhere.parquet", output, "--engine", "replay", *(["--dry-run"] if rehearse else [])]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2, done.stderr
    why = ("root directory", "NUL byte", "empty path")
    assert any(word in done.stderr.splitlines()[-1] for word in why)


WITH_SECRET = ("s3://AKIA:wJalr/SECRET@bucket/x?sig=SECRET", "file://u:SECRET@h/x", "https://h/x?b/c=SECRET")
PLACES = ("--metrics", "--report", "--cache", "--work-dir", "--base-model", "--adapter", "--ray")


@pytest.mark.parametrize("place", [*PLACES, "INPUT", "OUTPUT", "another", "show", "verify", "commit"])
@pytest.mark.parametrize("address", WITH_SECRET)
@pytest.mark.parametrize("as_json", [[], ["--log-json"]], ids=["plain", "json"])
def test_credentials_in_an_address_are_refused_and_not_told(
    address: str, place: str, as_json: list[str], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    source, output = str(backlog(tmp_path / "in.parquet")), str(tmp_path / "out.parquet")
    words = {
        "INPUT": [address, output],
        "OUTPUT": [source, address],
        "another": [source, output, address],
        **{name: [name, address] for name in ("show", "verify", "commit")},
    }.get(place, [source, output, place, address])
    routing = [] if place in ("show", "verify", "commit") else ["--engine", "replay"]
    if place in PLACES[:5] or place in ("INPUT", "OUTPUT"):
        routing += ["--adapter", str(tiny_bundle.path)]
    told = as_json if place not in ("show", "verify") else []
    done = CliRunner().invoke(main, [*words, *routing, *told])
    assert done.exit_code == 2 and "SECRET" not in done.output + done.stderr, done.output
    assert "this is a bug" not in done.stderr
