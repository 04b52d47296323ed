"""Writes docs/reference.md from the programs themselves: `python docs/make_reference.py`. A test keeps it
current.
"""

import dataclasses
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import click

from batch.cli import main as batch_route
from train import config
from train.cli import COMMANDS
from train.cli import main as batch_train

PAGE = Path(__file__).with_name("reference.md")
SECTIONS = {
    "base": config.Base,
    "base.shape": config.Shape,
    "data": config.Data,
    "lora": config.Lora,
    "quantisation": config.Quantisation,
    "training": config.Training,
    "calibration": config.CalibrationTarget,
}
NOTES = {
    "base.shape": "The values of the base's `config.json`, for `plan` while the base is not on this machine."
}


def reference() -> str:
    """The page, as Markdown."""
    commands = dict(all_commands())
    lines = ["# Reference", "", "Made by `python docs/make_reference.py`; do not edit.", ""]
    lines += [f"- [{name}](#{name.replace(' ', '-')})" for name in commands]
    lines += ["- [Recipe](#recipe)", *(f"  - [[{name}]](#{name.replace('.', '')})" for name in SECTIONS), ""]
    for name, found in commands.items():
        lines += command(name, found)
    lines += [
        "## Recipe",
        "",
        "The keys of a training recipe (`batch-train fit CONFIG`), section by section.",
        "",
    ]
    for name, section in SECTIONS.items():
        lines += [f"### [{name}]", "", *([NOTES[name], ""] if name in NOTES else [])]
        lines += ["| key | default | |", "|---|---|---|", *keys(section), ""]
    return "\n".join(lines)


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Each command under its whole name; a group comes before its own commands."""
    yield "batch-route", batch_route
    for name, other in getattr(batch_route, "others", {}).items():
        yield f"batch-route {name}", other
    yield "batch-train", batch_train
    for name in COMMANDS:
        found = batch_train.get_command(click.Context(batch_train), name)
        assert found is not None
        yield f"batch-train {name}", found
        if isinstance(found, click.Group):
            yield from ((f"batch-train {name} {own}", found.commands[own]) for own in found.commands)


def command(name: str, found: click.Command) -> Iterator[str]:
    context = click.Context(found, info_name=name)
    usage = " ".join([name, *found.collect_usage_pieces(context)])
    yield from (
        f"## {name}",
        "",
        "```",
        usage,
        "```",
        "",
        inspect.cleandoc(found.help or "").replace("\n\n\n", "\n\n"),
        "",
    )
    options = [each for each in found.params if isinstance(each, click.Option) and not each.hidden]
    if options:
        yield from ("| option | default | |", "|---|---|---|")
        for option in options:
            record = option.get_help_record(context)
            names, told = record if record else (option.opts[0], "")
            text = told if told.startswith("[") else told.partition("  [")[0]
            text = "" if text.startswith("[") else text
            notes = [
                note for group in re.findall(r"\[([^\]]+)\]", told[len(text) :]) for note in group.split("; ")
            ]
            ranges = [limits(note) for note in notes if re.search(r"x<|<x|x>|>x", note)]
            default = "; ".join(
                note.removeprefix("default: ") for note in notes if not re.search(r"x<|<x|x>|>x", note)
            )
            text = " ".join([text, *(f"({each})" for each in ranges)])
            yield f"| `{cell(names)}` | {cell(default)} | {cell(text)} |"
        yield ""


def limits(text: str) -> str:
    """click's `1<=x<=9` or `x>=1` in words."""
    low, _, high = text.partition("<=x<=")
    return f"{low} to {float(high):.15g}" if high else text.replace("x>=", "at least ")


def keys(section: type) -> Iterator[str]:
    notes = comments(section)
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING
        default = "required" if required else "" if field.default is None else f"`{as_toml(field.default)}`"
        yield f"| `{field.name}` | {default} | {cell(notes.get(field.name, ''))} |"


def as_toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "[]" if value == () else str(value)


def comments(section: type) -> dict[str, str]:
    """The comment of each field: on its own lines, or above it."""
    found: dict[str, list[str]] = {}
    above: list[str] = []
    name = None
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(section)).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if token.line.lstrip().startswith("#"):
                above.append(text)
            elif name:
                found.setdefault(name, []).append(text)
        elif (
            token.type == tokenize.NAME and token.start[1] == 4 and token.line[token.end[1] :].startswith(":")
        ):
            name = token.string
            found.setdefault(name, []).extend(above)
            above = []
    return {name: " ".join(texts) for name, texts in found.items()}


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
