"""The README's commands, columns and exit codes are those of the code."""

import re
import shlex
import subprocess

import click
import pytest
from click.testing import CliRunner

from batch import errors
from batch.cli import main as route
from batch.cli_errors import CommandWithOthers
from batch.contract.contract import Contract
from batch.scoring.lane import ERROR_MESSAGES
from batch.storage.output import output_columns
from tests import readme_walk
from tests.conftest import ROOT
from train.cli import main as train

README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = README + (ROOT / "docs/commands.md").read_text(encoding="utf-8")
COMMANDS = readme_walk.commands(README)
PROGRAMS: dict[str, click.Command] = {"batch-route": route, "batch-train": train}
INLINE = re.findall(r"`((?:batch-route|batch-train|make) [^`]+)`", TABLES)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 6 and len(INLINE) >= 10


@pytest.mark.parametrize("line", sorted({*COMMANDS, *INLINE}))
def test_each_command_exists_with_its_options(line: str) -> None:
    """`make` targets by a dry run of make, programs by their own option parser; `make walk` runs them."""
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    if words[0] == "make":
        assert (
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True).returncode == 0
        )
        return
    if words[0] in ("export", "unset", "python"):
        assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0
        return
    program = PROGRAMS[words[0]]
    if isinstance(program, CommandWithOthers) and words[1] in program.others:
        program, words = program.others[words[1]], words[1:]
    while isinstance(program, click.Group) and not words[1].startswith("-"):
        named = program.get_command(click.Context(program), words[1])
        assert named is not None
        program, words = named, words[1:]
    if words[1:] == ["--version"]:
        assert CliRunner().invoke(program, ["--version"]).exit_code == 0
        return
    with program.make_context("readme", words[1:], resilient_parsing=False):
        pass


def test_each_file_that_is_named_exists_or_is_made_by_a_line_before() -> None:
    """What the commands read is in a fresh clone, or an earlier command has written it."""
    made = {
        "out.parquet",
        "helpdesk",
        "helpdesk/recipe.toml",
        "helpdesk/test.jsonl",
        "routed.parquet",
        "report.html",
    }
    made |= {"tickets.parquet", "batch_route.prom"}
    named = {
        word
        for line in COMMANDS
        for word in re.findall(r"[\w./-]+\.(?:csv|jsonl|toml|parquet|html|prom)\b", line)
    }
    assert len(named) > 6
    for word in named - made:
        assert (ROOT / word).exists(), word


def test_plan_prints_the_first_experiments_counts() -> None:
    """The README's figure, from the command that it names."""
    result = CliRunner().invoke(train, ["plan", str(ROOT / "train/qwen3-4b.toml")], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    for figure in ("33,030,144", "4,055,498,240"):
        assert figure in result.output and figure in README


def test_columns_and_error_codes(contract: Contract) -> None:
    table = README.split("| column | |")[1].split("\n\n")[0]
    assert re.findall(
        r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:])
    ) == output_columns(contract)
    assert set(ERROR_MESSAGES) <= set(re.findall(r"`(\w+)`", table))


def test_exit_codes() -> None:
    table = README.split("| exit code | means |")[1].split("\n\n")[0]
    codes = {int(code) for line in table.splitlines()[2:] for code in re.findall(r"\d+", line.split("|")[1])}
    raised = {
        value.exit_code
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.BatchRouteError)
    }
    assert codes == {0, errors.EXIT_TOO_MANY_ERRORS, 130, 143} | raised


def test_the_examples_row_is_a_valid_label(contract: Contract, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from train.dataset import load_rows

    (tmp_path / "row.jsonl").write_text(re.findall(r"```json\n\s*(.*?)\n\s*```", README, re.S)[0] + "\n")
    assert len(load_rows(tmp_path / "row.jsonl", contract)) == 1


def test_the_walk_sees_what_is_not_printed() -> None:
    shown = "score    0.749\n\ntriage   auto\n"
    assert readme_walk.differs("text", shown, "id  7\nscore 0.751\ntriage auto\n") is None
    assert readme_walk.differs("text", shown, "score 0.80\ntriage auto\n") == "score    0.749"
    assert readme_walk.differs("text", shown, "triage auto\nscore 0.749\n") == "triage   auto"
    table = (
        "| right, of 300 | tfidf | champion |\n|---|---|---|\n| tier | 280 (0.90–0.96) | **281**, best |\n"
    )
    row = "│ tier      │   280/300 │   284/300 │\n│           │ 0.90–0.96 │ 0.91–0.97 │\n"
    assert readme_walk.differs("table", table, row) is None
    assert readme_walk.differs("table", table, row.replace("284", "250")) == table.splitlines()[2]
    assert readme_walk.differs("table", table, row.replace("tier", "risk")) == table.splitlines()[2]
    page = "```sh\nmake run   # first\n# note\nexport A=$PWD/b\n```\n\n" + table + "\n```text\nno\n```\n"
    assert readme_walk.commands(page) == ["make run", "export A=$PWD/b"]
    assert [kind for kind, _ in readme_walk._parts(page)] == ["sh", "sh", "table", "text"]
