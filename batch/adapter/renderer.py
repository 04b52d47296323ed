"""Conversation → token ids: the one renderer that training and serving share.

    prompt     = system and user turns in the base model's own chat template, up to where the assistant speaks
    example    = prompt + answer ids + end-of-turn id

The request is encoded apart from the template, by a copy of the tokenizer that knows no control token, and
the ids are joined. So no string in a request can become a control token, and the ids in front of it are the
same for every row, which is what the engine's prefix cache needs.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from batch.adapter.chat_template import DATE, NAMED_TOKENS, ChatTemplate, Style, Turns, token_text
from batch.adapter.files import read_json
from batch.adapter.vocabulary import Encoder, Vocabulary
from batch.contract.contract import Contract
from batch.contract.json_text import compact_json
from batch.errors import AdapterError, ContractError

# What a bundle keeps of a base, where it is there.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
)
MARKED = re.compile(r"<\S+>|\[\S+\]")
PROBES = ("Apply", "query 7 rows", "zebra", "My List")  # requests that begin and end in different tokens


@dataclasses.dataclass(frozen=True)
class Renderer:
    """Renders requests and answers of one contract with one base model's tokenizer and chat template."""

    contract: Contract
    prefix_ids: tuple[int, ...]  # everything in front of the request
    suffix_ids: tuple[int, ...]  # everything behind it, up to the answer
    end_of_turn_id: int
    closing_id: int | None  # the control token that the template puts behind an answer, if it puts one
    # the `eos_token`, which ends an answer where the template puts none
    eos_id: int | None = dataclasses.field(compare=False)
    pad_id: int
    fingerprint: str  # sha256 (hex) over the tokenizer's and template's files
    style: Style  # how the template takes a conversation
    template: ChatTemplate = dataclasses.field(repr=False, compare=False)
    _vocabulary: Vocabulary = dataclasses.field(repr=False, compare=False)
    _requests: "_Requests" = dataclasses.field(repr=False, compare=False)

    @classmethod
    def load(cls, folder: str | Path, contract: Contract) -> "Renderer":
        """Read the tokenizer files in `folder` (a base model's or a bundle's). Raises `AdapterError`."""
        folder = Path(folder)
        config = tokenizer_config(folder)
        vocabulary = Vocabulary.read(folder)
        template = ChatTemplate.read(folder, config)
        turns = template.turns(contract.system_prompt, folder)
        eos, pad = (_named_id(config, f"{name}_token", vocabulary, folder) for name in ("eos", "pad"))
        closing = _closing(turns, vocabulary)
        end = eos if closing is None else closing
        if end is None:
            raise AdapterError(
                f"{folder}: neither its chat template nor an eos_token ends an answer; use an instruct model"
            )
        _check_prompt(contract.system_prompt, vocabulary, folder)
        prefix, suffix, requests = _join(turns, vocabulary)
        renderer = cls(
            contract=contract,
            prefix_ids=tuple(prefix),
            suffix_ids=tuple(suffix),
            end_of_turn_id=end,
            closing_id=closing,
            eos_id=eos,
            pad_id=end if pad is None else pad,
            fingerprint=_fingerprint(vocabulary, template, end),
            style=turns.style,
            template=template,
            _vocabulary=vocabulary,
            _requests=requests,
        )
        renderer._check_answers(folder)
        return renderer

    @property
    def max_answer_tokens(self) -> int:
        """Tokens of the longest legal answer with its end of turn: every token but the last holds at least a
        byte.
        """
        return self.contract.max_answer_bytes + 1

    @property
    def max_prompt_tokens(self) -> int:
        return len(self.prefix_ids) + self.contract.max_tokens + len(self.suffix_ids)

    @property
    def max_model_len(self) -> int:
        """The longest sequence that any accepted row can need, in tokens."""
        return self.max_prompt_tokens + self.max_answer_tokens

    @property
    def largest_id(self) -> int:
        """The largest token id that a row can hold, control tokens that no row holds apart."""
        own = (*self.prefix_ids, *self.suffix_ids, self.end_of_turn_id, self.pad_id)
        return max(*own, *(token for token, _ in self.vocabulary()))

    def encode_requests(self, requests: Sequence[str]) -> list[list[int]]:
        """Ids of the request texts alone, without any control token. Uses all cores."""
        return self._requests.encode(requests)

    def prompt(self, request_ids: Sequence[int]) -> list[int]:
        return [*self.prefix_ids, *request_ids, *self.suffix_ids]

    def encode_prompt(self, request: str) -> list[int]:
        """Ids of the whole prompt, up to the first token of the answer."""
        return self.prompt(self.encode_requests([request])[0])

    def encode_answer(self, answer: dict[str, Any]) -> list[int]:
        """Ids of the serialised answer and the end of turn. Raises `InvalidAnswer`."""
        return [*self.encode_text(self.contract.serialise(answer)), self.end_of_turn_id]

    def encode_text(self, text: str) -> list[int]:
        """Ids of a piece of an answer's text, as the answer alone would have them."""
        return self._vocabulary.continuing.ids([text])[0]

    def encode_example(self, request: str, answer: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Prompt ids and completion ids of one labelled request; training learns the completion ids only."""
        return self.encode_prompt(request), self.encode_answer(answer)

    def token_name(self, token_id: int | None) -> str:
        """A token as people write it, for messages."""
        text = None if token_id is None else self._vocabulary.whole.id_to_token(token_id)
        return "none" if text is None else str(text)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token of an answer stands for; empty for a control token."""
        return self._vocabulary.table[token_id]

    def vocabulary(self) -> Iterator[tuple[int, bytes]]:
        """Each token id that is not a control token's, with its bytes."""
        return self._vocabulary.entries()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids. Raises `UnicodeDecodeError` where they are not valid UTF-8."""
        table = self._vocabulary.table
        return b"".join([table[i] for i in ids]).decode()

    def conversation(self, request: str, answer: str | None = None) -> list[dict[str, Any]]:
        """The turns as the template takes them, for who renders it by other means."""
        return self.style.conversation(self.contract.system_prompt, request, answer)

    def save(self, base: Path, bundle: Path) -> None:
        """Snapshot the tokenizer and the template of `base` into a bundle, as they are used here."""
        shutil.copyfile(base / "tokenizer.json", bundle / "tokenizer.json")
        config = tokenizer_config(base)
        config.pop("chat_template", None)
        config["eos_token"] = self.token_name(self.end_of_turn_id)  # what ends an answer
        if self.template.date:
            config[DATE] = self.template.date
        content = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (bundle / "tokenizer_config.json").write_text(content, encoding="utf-8")
        (bundle / "chat_template.jinja").write_text(self.template.source, encoding="utf-8")

    def _check_answers(self, folder: Path) -> None:
        """That the vocabulary spells every label and a few whole answers as they are, not normalised."""
        values = [compact_json(value) for field in self.contract.fields for value in field.values]
        answers = [self.contract.serialise(answer) for answer in self.contract.sample_answers()]
        texts = [*values, *answers]
        for text, ids in zip(texts, self._vocabulary.continuing.ids(texts), strict=True):
            read = b"".join(self._vocabulary.table[i] for i in ids).decode(errors="replace")
            if read != text:
                raise AdapterError(
                    f"{folder}: the tokenizer makes {read[:100]!a} of the contract's {text[:100]!a}; "
                    "write it as the "
                    "tokenizer does (most want Unicode's composed form, NFC) or use another base model"
                )


@dataclasses.dataclass(frozen=True)
class _Requests:
    """Encodes requests as they stand in the prompt."""

    encoder: Encoder
    lead: str = ""  # spaces of the template right in front of the request, which make one token with its word

    def encode(self, requests: Sequence[str]) -> list[list[int]]:
        return self.encoder.ids([self.lead + request for request in requests] if self.lead else requests)


def _join(turns: Turns, vocabulary: Vocabulary) -> tuple[list[int], list[int], _Requests]:
    """Ids in front of and behind the request, and how it is encoded between them.

    Of the ways to do it the first is taken that gives, on a few probes, the ids of the conversation encoded
    as one text; that is what the base model has read. Where none does, the text simply goes on.
    """
    head = turns.head.rstrip(" ")
    ways = [
        (head, _Requests(vocabulary.continuing, lead=turns.head[len(head) :])),
        (turns.head, _Requests(vocabulary.opening)),
    ]

    def ids(text: str) -> list[int]:
        return vocabulary.whole.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    whole = [ids(turns.head + probe + turns.tail) for probe in PROBES]
    for before, requests in ways:
        prefix = ids(before)
        starts = [[*prefix, *request] for request in requests.encode(PROBES)]
        suffix = whole[0][len(starts[0]) :]
        if whole == [[*start, *suffix] for start in starts]:
            return prefix, suffix, requests
    return ids(turns.head), ids(turns.tail), _Requests(vocabulary.continuing)


def _check_prompt(prompt: str, vocabulary: Vocabulary, folder: Path) -> None:
    """Refuse a contract whose text, such as a label, spells a control token: it would become that token."""
    for token in vocabulary.whole.get_added_tokens_decoder().values():
        marked = token.special or MARKED.fullmatch(token.content)  # others may be a word that was added
        if marked and token.content.strip() and token.content in prompt:
            raise ContractError(
                f"the contract's prompt or one of its labels holds {token.content!r}, a control token of "
                f"{folder}; word it otherwise"
            )


def _closing(turns: Turns, vocabulary: Vocabulary) -> int | None:
    """The control token that the template puts behind an answer, None where it puts none."""
    closing = vocabulary.whole.encode((turns.closing or "").lstrip(), add_special_tokens=False).ids
    return int(closing[0]) if closing and closing[0] in vocabulary.controls else None


def _named_id(config: Mapping[str, Any], name: str, vocabulary: Vocabulary, folder: Path) -> int | None:
    """Id of the token that the tokenizer's config gives this name; None where it gives it to none."""
    text = token_text(config, name, folder)
    found: int | None = vocabulary.whole.token_to_id(text) if text else None
    if text and found is None:
        raise AdapterError(f"{folder}: its {name} {text!r} is not in the vocabulary; copy the folder again")
    return found


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, with the tokens that only an older `special_tokens_map.json` names."""
    config = read_json(folder / "tokenizer_config.json", "a model folder")
    older = folder / "special_tokens_map.json"
    if older.exists():
        named = read_json(older, "a model folder")
        known = (*NAMED_TOKENS, "additional_special_tokens")
        config |= {name: named[name] for name in known if config.get(name) is None and name in named}
    return config


def _fingerprint(vocabulary: Vocabulary, template: ChatTemplate, end_id: int) -> str:
    values = [vocabulary.sha256, template.source, str(end_id), *([template.date] if template.date else [])]
    return hashlib.sha256("\0".join(values).encode()).hexdigest()
