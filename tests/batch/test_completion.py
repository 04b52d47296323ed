"""Completion in the shell, as click has it: options, commands, and the adapters there are."""

from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from batch.cli import main as route
from train.cli import main as train


@pytest.mark.parametrize(
    ("program", "words", "begun", "found"),
    [
        (route, ["in", "out", "--adapter"], "ch", ["champion"]),
        (route, ["in", "out", "--adapter"], "ab", ["ab" * 6]),
        (route, ["in", "out", "--adapter"], "champion,la", ["champion,latest"]),
        (route, [], "--adapter-c", ["--adapter-column"]),
        (train, [], "apply", ["apply-reviews"]),
        (train, ["adapters"], "--js", ["--json"]),
        (train, ["contract"], "i", ["init"]),
    ],
)
def test_what_is_offered(
    program: click.Command, words: list[str], begun: str, found: list[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "aliases").mkdir()
    (tmp_path / ("ab" * 32)).mkdir()
    for alias in ("champion", "latest"):
        (tmp_path / "aliases" / alias).write_text("ab" * 32 + "\n")
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path))
    offered = ShellComplete(program, {}, "program", "_COMPLETE").get_completions(words, begun)
    assert [each.value for each in offered] == found
