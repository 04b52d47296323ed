"""Writes docs/reference.md from the programs themselves: `python docs/make_reference.py`. A test keeps it
current.
"""

import dataclasses
import inspect
import io
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


def reference() -> str:
    """The page, as Markdown."""
    lines = ["# Reference", "", "Made by `python docs/make_reference.py`; do not edit.", ""]
    lines += ["- [batch-route](#batch-route)", "- [Recipe](#recipe)"]
    lines += [f"- [batch-train {name}](#batch-train-{name})" for name in COMMANDS]
    others = getattr(batch_route, "others", {})
    lines += ["", *command("batch-route", batch_route)]
    for name, other in others.items():
        lines += command(f"batch-route {name}", other)
    for name in COMMANDS:
        found = batch_train.get_command(click.Context(batch_train), name)
        assert found is not None
        lines += command(f"batch-train {name}", found)
    lines += [
        "## Recipe",
        "",
        "The keys of a training recipe (`batch-train fit CONFIG`), section by section.",
        "",
    ]
    for name, section in SECTIONS.items():
        lines += [f"### [{name}]", "", "| key | default | |", "|---|---|---|", *keys(section), ""]
    return "\n".join(lines)


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
            names, text = record if record else (option.opts[0], "")
            text, _, notes = text.partition("  [")
            said = [note.removeprefix("default: ") for note in notes.rstrip("]").split("; ")]
            default = "; ".join(note for note in said if "<=" not in note and ">=" not in note)
            yield f"| `{cell(names)}` | {cell(default)} | {cell(text)} |"
        yield ""


def keys(section: type) -> Iterator[str]:
    notes = comments(section)
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING
        default = "required" if required else "" if field.default is None else f"`{field.default}`"
        yield f"| `{field.name}` | {default} | {cell(notes.get(field.name, ''))} |"


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
