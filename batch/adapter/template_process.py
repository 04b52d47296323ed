"""Renders a chat template, in a process of its own: `python -I template_process.py`, JSON in, JSON out.

A template is a program out of somebody's model folder. Jinja's sandbox keeps it from files and attributes,
not from loops and memory: this process may use a few seconds and a few hundred megabytes, and then dies
alone. What a template finds here is what transformers gives to it, but for the date, which is the asker's.
"""

import contextlib
import datetime
import json
import resource
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

CPU_SECONDS = 2  # a template takes milliseconds
MEMORY_BYTES = 512 << 20


class Generation(jinja2.ext.Extension):
    """``{% generation %} … {% endgeneration %}`` marks what an assistant says; what is inside is only
    rendered.
    """

    tags = {"generation"}  # noqa: RUF012  # jinja's own interface

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def environment(date: str) -> jinja2.Environment:
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    day = datetime.datetime.fromisoformat(date)
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = day.strftime
    made.filters["tojson"] = to_json
    # chance: one conversation would be rendered in two ways
    made.filters.pop("random")
    made.globals.pop("lipsum")
    return made


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def render(asked: dict[str, Any]) -> list[dict[str, str]]:
    """For each of `chats`, the names that it adds to those of all: ``{"text": …}`` or ``{"error": …}``."""
    answers: list[dict[str, str]] = []
    for chat in asked["chats"]:
        try:
            pieces, size = [], 0
            for piece in (
                environment(asked["date"]).from_string(asked["template"]).generate(**asked["names"], **chat)
            ):
                pieces.append(piece)
                size += len(piece)
                if size > asked["limit"]:
                    raise ValueError(f"it makes more than {asked['limit']:,} characters of the conversation")
            answers.append({"text": "".join(pieces)})
        except MemoryError:
            answers.append({"error": f"it takes more than {MEMORY_BYTES >> 20} MB"})
        except Exception as error:  # a template may raise anything
            answers.append({"error": " ".join(str(error).split())[:200] or type(error).__name__})
    return answers


if __name__ == "__main__":
    with contextlib.suppress(OSError, ValueError):  # a stricter limit stands already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(render(json.load(sys.stdin)), sys.stdout)
