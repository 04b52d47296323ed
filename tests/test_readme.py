"""The README's commands, columns and exit codes are those of the code."""

import re
import shlex
import subprocess

import click
import pytest
from click.testing import CliRunner

from batch import errors
from batch.cli import main as route
from batch.contract.contract import Contract
from batch.scoring.lane import ERROR_MESSAGES
from batch.storage.output import output_columns
from tests.conftest import ROOT
from train.cli import main as train

README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
COMMANDS = [line.split("#")[0].strip() for line in BLOCKS.splitlines() if line.split("#")[0].strip()]
INLINE = re.findall(r"`((?:batch-route|batch-train|make) [^`]+)`", README)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 6 and len(INLINE) >= 10


@pytest.mark.parametrize("line", sorted({*COMMANDS, *INLINE}))
def test_each_command_exists_with_its_options(line: str) -> None:
    """`make` targets by a dry run of make, programs by their own option parser; the loop itself runs in test_loop."""
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    if words[0] == "make":
        assert (
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True).returncode == 0
        )
        return
    program: click.Command = {"batch-route": route, "batch-train": train}[words[0]]
    if isinstance(program, click.Group):
        named = program.get_command(click.Context(program), words[1])
        assert named is not None
        program, words = named, words[1:]
    with program.make_context("readme", words[1:], resilient_parsing=False):
        pass


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
