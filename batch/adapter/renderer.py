"""Conversation → token ids: the one renderer that training and serving share.

    prompt     = system and user turns in the base model's own chat template, up to where the assistant speaks
    example    = prompt + answer ids + end-of-turn id

The request is encoded apart from the template, by a copy of the tokenizer that knows no added token, and the
ids are joined. So no string in a request can become a control token, and the ids in front of it are the same
for every row, which is what the engine's prefix cache needs.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
from tokenizers import Tokenizer

from batch.contract.contract import Contract
from batch.errors import AdapterError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SLOT = "\ue000request\ue001"  # private-use characters: stands for the request while the template is rendered


@dataclasses.dataclass(frozen=True)
class Renderer:
    """Renders requests and answers of one contract with one base model's tokenizer and chat template."""

    contract: Contract
    prefix_ids: tuple[int, ...]  # everything in front of the request
    suffix_ids: tuple[int, ...]  # everything behind it, up to the answer
    end_of_turn_id: int
    pad_id: int
    fingerprint: str  # sha256 (hex) over the tokenizer's and template's files
    _tokenizer: Tokenizer = dataclasses.field(repr=False, compare=False)
    _plain: Tokenizer = dataclasses.field(repr=False, compare=False)  # the same without added tokens

    @classmethod
    def load(cls, folder: str | Path, contract: Contract) -> "Renderer":
        """Read the tokenizer files in `folder` (a base model's or a bundle's). Raises `AdapterError`."""
        folder = Path(folder)
        try:
            content = (folder / "tokenizer.json").read_text(encoding="utf-8")
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            template_file = folder / "chat_template.jinja"
            template = (
                template_file.read_text(encoding="utf-8")
                if template_file.exists()
                else config.get("chat_template")
            )
            tokenizer = Tokenizer.from_str(content)
        except FileNotFoundError as error:
            raise AdapterError(f"no {Path(error.filename).name} in {folder}; is it a model folder?") from None
        except Exception as error:  # `tokenizers` raises bare Exception for a malformed file
            raise AdapterError(
                f"{folder}: cannot read the tokenizer: {error}; copy the folder again"
            ) from error
        if not template:
            raise AdapterError(f"{folder}: the tokenizer has no chat template; use an instruct model")
        special = json.loads(content)
        special["added_tokens"] = []
        plain = Tokenizer.from_str(json.dumps(special))
        for encoder in (tokenizer, plain):
            encoder.no_padding()
            encoder.no_truncation()
        head, tail = _render(template, config, contract.system_prompt, folder)
        end_id = tokenizer.token_to_id(_token(config.get("eos_token")))
        pad_id = tokenizer.token_to_id(_token(config.get("pad_token") or config.get("eos_token")))
        if end_id is None or pad_id is None:
            raise AdapterError(
                f"{folder}: eos_token or pad_token of tokenizer_config.json is not in the vocabulary"
            )
        return cls(
            contract=contract,
            prefix_ids=tuple(tokenizer.encode(head, add_special_tokens=False).ids),
            suffix_ids=tuple(tokenizer.encode(tail, add_special_tokens=False).ids),
            end_of_turn_id=end_id,
            pad_id=pad_id,
            fingerprint=_fingerprint(content, template, end_id),
            _tokenizer=tokenizer,
            _plain=plain,
        )

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

    def encode_requests(self, requests: Sequence[str]) -> list[list[int]]:
        """Ids of the request texts alone, without any control token. Uses all cores."""
        return [
            encoding.ids
            for encoding in self._plain.encode_batch_fast(list(requests), add_special_tokens=False)
        ]

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
        return self._plain.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def encode_example(self, request: str, answer: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Prompt ids and completion ids of one labelled request; training learns the completion ids only."""
        return self.encode_prompt(request), self.encode_answer(answer)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token of an answer stands for; empty for a control token."""
        return self._token_bytes[token_id]

    def vocabulary(self) -> Iterator[tuple[int, bytes]]:
        """Each token id that is no control token, with its bytes."""
        return ((token, text) for token, text in enumerate(self._token_bytes) if text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids. Raises `UnicodeDecodeError` where they are not valid UTF-8."""
        table = self._token_bytes
        return b"".join([table[i] for i in ids]).decode()

    @functools.cached_property
    def _token_bytes(self) -> list[bytes]:
        to_byte = {char: byte for byte, char in _byte_level_alphabet().items()}
        table = [b""] * self._tokenizer.get_vocab_size(with_added_tokens=True)
        controls = self._tokenizer.get_added_tokens_decoder()  # some vocabularies list them as well
        for token, token_id in self._plain.get_vocab(with_added_tokens=False).items():
            if token_id in controls:
                continue
            if token_id >= len(table):
                table.extend([b""] * (token_id + 1 - len(table)))
            table[token_id] = bytes(to_byte[char] for char in token)
        return table


def _render(template: str, config: dict[str, Any], system: str, folder: Path) -> tuple[str, str]:
    """The rendered conversation in front of and behind the request."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    # The names that transformers gives to chat templates, but for `strftime_now`: a prompt that changes with
    # the date would differ between training and serving.
    environment.globals["raise_exception"] = _raise
    environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": _SLOT}]
    tokens = {
        name: _token(config.get(name)) for name in ("bos_token", "eos_token", "pad_token") if config.get(name)
    }
    absent = {"tools": None, "documents": None}  # as transformers passes them: None, not undefined
    try:
        text = environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, **absent, **tokens
        )
    except Exception as error:  # a template is a program: it can fail in any way
        raise AdapterError(f"{folder}: the chat template fails: {error}; use an instruct model's") from error
    if text.count(_SLOT) != 1:
        raise AdapterError(f"{folder}: the chat template does not hold the request exactly once")
    head, tail = text.split(_SLOT)
    return head, tail


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _token(entry: Any) -> str:
    return entry["content"] if isinstance(entry, dict) else str(entry)


def _fingerprint(content: str, template: str, end_id: int) -> str:
    return hashlib.sha256("\0".join([content, template, str(end_id)]).encode()).hexdigest()


@functools.cache
def _byte_level_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, the alphabet of every byte-level BPE vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}
