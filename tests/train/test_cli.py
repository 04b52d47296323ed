"""`batch-train`: its list of commands loads none of them, and each says in its own help what the list says."""

import click
import pytest
from click.testing import CliRunner

from tests.test_layering import HEAVY, loaded
from train.cli import COMMANDS, main


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    assert loaded("import train.cli") & (HEAVY | {"rich", "sklearn", "matplotlib"}) == set()


def test_the_list_shows_each_summary_whole_on_a_line_of_80_characters() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    assert "…" not in shown and "..." not in shown.replace("[ARGS]...", "")
    lines = [line.split(maxsplit=1) for line in shown.partition("Commands:\n")[2].splitlines()]
    assert lines == [[name, entry.summary] for name, entry in COMMANDS.items()]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_own_help_begins_with_its_summary(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None and command.name == name
    assert (command.help or "").partition("\n\n")[0] == COMMANDS[name].summary


def test_an_unknown_command_is_refused_with_exit_code_2() -> None:
    result = CliRunner().invoke(main, ["trian"])
    assert result.exit_code == 2 and "No such command 'trian'" in result.output
