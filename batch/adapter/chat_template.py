"""A base model's chat template: how a conversation becomes one text, and where in it request and answer
stand.

Templates differ in what they take: a content may be a text or a list of parts, and some know no system turn;
the instructions then stand at the head of the user's. Which of these a template takes is tried, not assumed.
"""

import dataclasses
import datetime
import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch.adapter import template_process
from batch.adapter.files import read_json
from batch.errors import AdapterError

MAX_TEMPLATE = 1 << 20  # characters; the longest in use have 20,000
ROOM = 1 << 16  # characters that a template may add to the instructions
WAIT_SECONDS = 60.0  # for the process that renders, on a machine that is busy
REQUEST, ANSWER = "\ue000request\ue001", "\ue000answer\ue001"  # private-use characters stand for them
DATE = "template_date"  # a bundle's tokenizer_config.json: the day that `strftime_now` goes on saying
NAMED_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclasses.dataclass(frozen=True)
class Style:
    """How a template wants a conversation to be given."""

    parts: bool = False  # a content is a list of parts, as models that see have it
    folded: bool = False  # no system turn: the instructions are the beginning of the user's

    def conversation(self, system: str, request: str, answer: str | None = None) -> list[dict[str, Any]]:
        turns = [("system", system), ("user", request)]
        if self.folded:
            turns = [("user", f"{system}\n\n{request}")]
        if answer is not None:
            turns.append(("assistant", answer))
        return [
            {"role": role, "content": [{"type": "text", "text": text}] if self.parts else text}
            for role, text in turns
        ]


STYLES = (Style(), Style(parts=True), Style(folded=True), Style(parts=True, folded=True))


@dataclasses.dataclass(frozen=True)
class Turns:
    """A rendered conversation, cut at the request and behind the answer."""

    head: str
    tail: str  # from the request to where the answer begins
    closing: str | None  # what follows an answer; None where the template takes none
    style: Style


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    source: str
    names: str  # the special tokens by name, as JSON
    date: str | None  # what `strftime_now` says, ISO; None where the template does not ask

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> "ChatTemplate":
        """From a file of its own, the tokenizer's config or the processor's. Raises `AdapterError`."""
        source = _source(folder, config)
        if not source:
            raise AdapterError(f"{folder}: the tokenizer has no chat template; use an instruct model")
        if len(source) > MAX_TEMPLATE:
            raise AdapterError(
                f"{folder}: the chat template is larger than any known one; use an instruct model's"
            )
        names: dict[str, Any] = {
            name: token for name in NAMED_TOKENS if (token := token_text(config, name, folder))
        }
        extra = config.get("additional_special_tokens") or []
        if isinstance(extra, list):
            names["additional_special_tokens"] = [token_text({"": token}, "", folder) for token in extra]
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        date = str(config.get(DATE) or today) if "strftime_now" in source else None
        return cls(source, json.dumps(names), date)

    def turns(self, system: str, folder: Path) -> Turns:
        """Instructions and one request as one text, in the first style that the template takes whole."""
        prompts = _rendered(self, system)
        for style, (prompt, answered) in zip(STYLES, prompts, strict=True):
            text = prompt.get("text", "")
            if text.count(REQUEST) == 1 and system in text:
                head, tail = text.split(REQUEST)
                if not tail.strip():
                    raise AdapterError(
                        f"{folder}: the chat template ends with the request, nothing says where the answer "
                        "begins; use an instruct model's"
                    )
                _, found, closing = answered.get("text", "").rpartition(ANSWER)
                return Turns(head, tail, closing if found else None, style)
        first = prompts[0][0]
        if "error" in first:
            raise AdapterError(
                f"{folder}: the chat template fails: {first['error']}; use an instruct model's"
            )
        wrong = "the request exactly once" if first["text"].count(REQUEST) != 1 else "the instructions"
        raise AdapterError(f"{folder}: the chat template does not hold {wrong}; use an instruct model's")


def token_text(config: Mapping[str, Any], name: str, folder: Path) -> str:
    """A special token's text, which a file may give in either of two ways; empty where there is none."""
    entry = config.get(name)
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    if text is not None and not isinstance(text, str):
        raise AdapterError(
            f"{folder}: {name or 'a special token'} is {text!r}, not a text; copy the folder again"
        )
    return text or ""


def _source(folder: Path, config: Mapping[str, Any]) -> str | None:
    own, processor = folder / "chat_template.jinja", folder / "chat_template.json"
    if own.exists():
        try:
            return own.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise AdapterError(f"{own}: cannot be read: {error}; copy the folder again") from error
    source = config.get("chat_template")
    if source is None and processor.exists():
        source = read_json(processor, "a model folder").get("chat_template")
    if isinstance(source, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, Mapping)}
        source = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
        if source is None:
            raise AdapterError(f"{folder}: none of its chat templates is named `default`; keep one")
    if source is not None and not isinstance(source, str):
        raise AdapterError(f"{folder}: the chat template is not a text; copy the folder again")
    return source


@functools.lru_cache(maxsize=64)
def _rendered(template: ChatTemplate, system: str) -> list[tuple[dict[str, str], dict[str, str]]]:
    """For each of `STYLES`, the prompt and the conversation with an answer: a text or an error."""
    chats = [
        {"messages": messages, "add_generation_prompt": messages[-1]["role"] == "user"}
        for style in STYLES
        for messages in (style.conversation(system, REQUEST), style.conversation(system, REQUEST, ANSWER))
    ]
    asked = {
        "template": template.source,
        "date": template.date or "2000-01-01",
        "names": {**json.loads(template.names), "tools": None, "documents": None},
        "chats": chats,
        "limit": 2 * len(system) + ROOM,
    }
    line = [sys.executable, "-I", template_process.__file__]
    try:
        done = subprocess.run(
            line, input=json.dumps(asked).encode(), capture_output=True, timeout=WAIT_SECONDS, check=True
        )
        answers = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        answers = [{"error": f"it takes more than {template_process.CPU_SECONDS} seconds"}] * len(chats)
    return list(zip(answers[::2], answers[1::2], strict=True))
