"""docs/: what is generated is current, links lead somewhere, and examples name options that exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from batch.cli import main as batch_route
from batch.cli_errors import CommandWithOthers
from batch.engine import ADAPTER_MOVES
from tests.conftest import ROOT
from train.cli import main as batch_train
from train.doctor import served, skew
from train.doctor.check import NAMES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_reference_is_what_the_programs_say() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs/make_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.reference(), "run python docs/make_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def commands(page: Path) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    words = [shlex.split(line) for line in lines if re.match(r"(\w+=\S+ )?batch-(route|train) ", line)]
    return [[word for word in each if "=" not in word or word.startswith("-")] for each in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_are_command_lines_that_parse(page: Path) -> None:
    for program, *words in commands(page):
        words = [word for word in words if word != "…"]
        command: click.Command | None = batch_route if program == "batch-route" else batch_train
        while words and isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words.pop(0))
        if isinstance(command, CommandWithOthers) and words[0] in command.others:
            command = command.others[words.pop(0)]
        if words == ["--version"]:
            continue
        assert command is not None, (program, words)
        with command.make_context(program, list(words), resilient_parsing=False):
            pass


def test_the_doctors_checks_are_listed_with_their_limits() -> None:
    page = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    table = page.split("| check | what is compared | limit |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    assert [cell[0].strip("`") for cell in cells] == list(NAMES)
    limits = {name: cell[-1] for name, cell in zip(NAMES, cells, strict=True)}
    same, other = skew.SAME_WEIGHTS, skew.OTHER_WEIGHTS
    for figure in (
        f"{same.agree:.0%}".replace("%", " %"),
        f"{same.mean:g} on average",
        f"{same.most:g} at most",
    ):
        assert figure in limits["4-bit skew"], figure
    assert (
        f"within {skew.TIE:g}" in limits["4-bit skew"]
        and f"{ADAPTER_MOVES:.4f} nats" in limits["adapter acts"]
    )
    assert f"the answers to {served.SAMPLE} training rows" in page and served.LEARNED == 0.5
    assert (other.agree, other.most) == (same.agree, 1.0) and re.search(rf"{other.mean:g}\s+on average", page)
