"""A base model's tokenizer, three ways: whole, and two copies that no text can make spell a control token.

Served are the two kinds of vocabulary that can spell every text: byte-level BPE (GPT-2, Llama 3, Qwen) and
SentencePiece with bytes to fall back on (Llama 2, Mistral, Gemma, Phi 3). Which one it is, is read off its
file.
"""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from batch.adapter.files import read_json
from batch.errors import AdapterError
from batch.storage.digest import file_digest

try:
    import fastokens
except ImportError:  # it has no wheel for every machine
    fastokens = None

MAX_ID = 1 << 22  # of a token; the largest vocabularies have a sixteenth of that
MAX_GROWTH = 64  # times that normalisers may lengthen a text; real ones replace a character by one
KEPT = 4  # vocabularies that a process remembers
TOKENS_A_TEXT = 3  # fastokens loads so many of a vocabulary's in the time that it saves on one text
SPACE = "\u2581"  # SentencePiece's stand-in for a space
# Bytes that a byte-level vocabulary may lack (SmolLM2's lacks 21): controls other than white space, what no
# UTF-8 holds, and the first bytes of planes 4 to 11, in which no character is assigned.
SPARED = frozenset({*range(9), 11, 12, *range(14, 32), 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)})
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Encoder:
    """A tokenizer that knows no control token. After enough texts to be worth loading it, the work goes to
    fastokens, twenty times as fast as `tokenizers`, where that is installed, reads the vocabulary and has the
    same ids of all `samples`.
    """

    def __init__(self, tokenizer: Tokenizer, samples: Sequence[str]) -> None:
        self._slow, self._samples = tokenizer, samples
        self._spared = tokenizer.get_vocab_size() // TOKENS_A_TEXT  # texts until then

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Uses all cores, and lets go of the GIL."""
        self._spared -= len(texts)
        return self._slowly(texts) if self._spared > 0 else self._quickly(texts)

    def _quickly(self, texts: Sequence[str]) -> list[list[int]]:
        if self._fast:
            with contextlib.suppress(ValueError):  # its matcher has a limit, which a text may exceed
                return _ids(self._fast.encode_batch(texts))
        return self._slowly(texts)

    def _slowly(self, texts: Sequence[str]) -> list[list[int]]:
        return _ids(self._slow.encode_batch_fast(texts, add_special_tokens=False))

    @functools.cached_property
    def _fast(self) -> Any:
        with contextlib.suppress(ValueError):  # a part of the tokenizer that it does not know
            if fastokens is not None:
                fast = fastokens.Tokenizer.from_json_str(self._slow.to_str())
                if _ids(fast.encode_batch(self._samples)) == self._slowly(self._samples):
                    return fast
        return None


def _ids(encodings: Iterable[Any]) -> list[list[int]]:
    return [each.ids for each in encodings]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    whole: Tokenizer  # knows the control tokens
    opening: Encoder  # of a text that stands first, or behind a control token
    continuing: Encoder  # of a text that goes on: puts no space in front
    controls: frozenset[int]
    spaces: Mapping[int, bytes]  # added tokens that are ordinary white space
    table: Sequence[bytes]  # what each token of a text stands for; empty for a control token
    sha256: str  # of its file

    @classmethod
    def read(cls, folder: Path) -> "Vocabulary":
        """Read `tokenizer.json`. Raises `AdapterError` for a kind that is not served, or that is not safe.

        One file is read once: with 262,144 tokens that takes seconds, and a base's bundles have its own.
        """
        path = folder / "tokenizer.json"
        digest = file_digest(path) if path.is_file() else ""
        if known := _known.get(digest):
            return known
        content = read_json(path, "a model folder with a fast tokenizer")
        try:
            _check_bounds(content, folder)
            content["model"].pop("dropout", None)  # chance, for training a tokenizer's model alone
            byte_level = _is_byte_level(content, folder)
            whole = _tokenizer(content)
            controls, spaces = _added(content)
            _forget(content, controls)
            plain = _tokenizer(content)
            table = _table(plain, frozenset(controls.values()), spaces, byte_level)
            samples = [*_words(table), *_spelt(controls)]
            opening = continuing = Encoder(plain, samples)
            if _drop_prefix(content):
                continuing = Encoder(_tokenizer(content), samples)
        except AdapterError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exception for a malformed file
            said = " ".join(str(error).split())[:200]
            raise AdapterError(
                f"{folder}: cannot read the tokenizer: {said}; copy the folder again"
            ) from error
        found = cls(whole, opening, continuing, frozenset(controls.values()), spaces, table, digest)
        found._check_controls(list(controls), folder)
        if len(_known) == KEPT:
            del _known[next(iter(_known))]
        return _known.setdefault(digest, found)

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """Each token id that is not a control token's, with its bytes."""
        return ((token, text) for token, text in enumerate(self.table) if text)

    def _check_controls(self, controls: list[str], folder: Path) -> None:
        """That no text spells a control token."""
        texts = _spelt(controls)
        for encoder in (self.opening, self.continuing):
            for text, ids in zip(texts, encoder.ids(texts), strict=True):
                if not self.controls.isdisjoint(ids):
                    raise AdapterError(
                        f"{folder}: the tokenizer makes a control token of the text {text.strip()!r}, "
                        "so a request "
                        "could; use another base model"
                    )


_known: dict[str, Vocabulary] = {}  # by the sha256 of its file


def _tokenizer(content: Mapping[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _table(
    plain: Tokenizer, controls: Collection[int], spaces: Mapping[int, bytes], byte_level: bool
) -> list[bytes]:
    spelt = plain.get_vocab(with_added_tokens=False)
    table = [b""] * (max((*spelt.values(), *controls, *spaces), default=0) + 1)
    to_byte = {char: byte for byte, char in _byte_level_alphabet().items()}
    for token, token_id in spelt.items():
        if token_id in controls or token_id in spaces:
            continue
        if byte_level:
            table[token_id] = bytes(to_byte[char] for char in token)
        elif found := BYTE.fullmatch(token):
            table[token_id] = bytes.fromhex(found[1])
        else:
            table[token_id] = token.replace(SPACE, " ").encode()
    for token_id, text in spaces.items():
        table[token_id] = text
    return table


def _words(table: Sequence[bytes]) -> list[str]:
    """A thousand texts of tokens from all of a vocabulary."""
    step = max(1, len(table) // 1000)
    return [b"".join(table[at : at + 8]).decode(errors="replace") for at in range(0, len(table), step)]


def _spelt(controls: Iterable[str]) -> list[str]:
    """Each control token's own text, alone and among others."""
    return [made for text in controls for made in (text, f" {text} ", f"x{text}x", text + text)]


def _check_bounds(content: Mapping[str, Any], folder: Path) -> None:
    """Before a tokenizer is built of it: a file of a few bytes can ask for gigabytes."""
    vocab = content["model"]["vocab"]
    ids = [
        *(vocab.values() if isinstance(vocab, dict) else [len(vocab)]),
        *(t["id"] for t in content["added_tokens"]),
    ]
    if not all(type(each) is int and 0 <= each < MAX_ID for each in ids):
        raise AdapterError(
            f"{folder}: the tokenizer has an id outside 0 to {MAX_ID - 1}; copy the folder again"
        )
    growth = 1
    for part in _parts(content.get("normalizer"), "normalizers"):
        growth *= 1 + len(part.get("content") or part.get("prepend") or "")
    if growth > MAX_GROWTH:
        raise AdapterError(
            f"{folder}: the tokenizer makes a text up to {growth} times as long; copy the folder again"
        )


def _is_byte_level(content: Mapping[str, Any], folder: Path) -> bool:
    decoders = {part.get("type") for part in _parts(content.get("decoder"), "decoders")}
    model, pieces = content["model"], content["model"]["vocab"]
    # marks of a token's place in a word are no bytes of a text
    marked = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    known = pieces if isinstance(pieces, dict) else {piece for piece, _ in pieces}
    if "ByteLevel" in decoders and not marked:
        signs = _byte_level_alphabet()
        alphabet, needed = set(signs.values()), {signs[byte] for byte in range(256) if byte not in SPARED}
        added = {token["content"] for token in content["added_tokens"]}
        # what is not known is left out, and does not become a token that a text must not spell
        complete = alphabet <= set(known) or (needed <= set(known) and not model.get("unk_token"))
        if complete and all(alphabet.issuperset(piece) for piece in known if piece not in added):
            return True
    elif model.get("byte_fallback") and not marked and all(f"<0x{byte:02X}>" in known for byte in range(256)):
        return False
    raise AdapterError(
        f"{folder}: the tokenizer ({model.get('type', 'of an unknown kind')}) cannot spell every text; "
        "served are "
        "byte-level BPE and SentencePiece with byte fallback"
    )


def _added(content: Mapping[str, Any]) -> tuple[dict[str, int], dict[int, bytes]]:
    """The added tokens: control tokens by text, and the runs of white space that are ordinary text, by id."""
    controls, spaces = {}, {}
    for token in content["added_tokens"]:
        text = token["content"].replace(SPACE, " ")
        if token["special"] or text.strip():
            controls[token["content"]] = token["id"]
        else:
            spaces[token["id"]] = text.encode()
    return controls, spaces


def _forget(content: dict[str, Any], controls: Mapping[str, int]) -> None:
    """Take the control tokens out of a tokenizer's JSON, from a BPE's own vocabulary as well."""
    content["added_tokens"] = []
    model = content["model"]
    unknown = model.get("unk_token")
    known = (
        {text for text in controls if text in model["vocab"]} - {unknown}
        if model.get("type", "BPE") == "BPE"
        else set()
    )
    if known:
        model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in known}
        pairs = ((merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"])
        model["merges"] = [
            merge for merge, pair in pairs if known.isdisjoint(pair) and "".join(pair) not in known
        ]


def _drop_prefix(content: dict[str, Any]) -> bool:
    """Have no space put in front of a text; whether one was."""
    dropped = False
    normalizer = content.get("normalizer")
    kept = [part for part in _parts(normalizer, "normalizers") if part.get("type") != "Prepend"]
    if len(kept) < len(list(_parts(normalizer, "normalizers"))):
        content["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
        dropped = True
    for part in _parts(content.get("pre_tokenizer"), "pretokenizers"):
        for key, never in (("add_prefix_space", False), ("prepend_scheme", "never")):
            if part.get(key, never) != never:
                part[key] = never
                dropped = True
    return dropped


def _parts(component: Any, nested: str) -> list[dict[str, Any]]:
    """A component of a tokenizer's JSON as a flat list: one, or a sequence of them, or none."""
    if not component:
        return []
    if component.get("type") != "Sequence":
        return [component]
    return [part for each in component[nested] for part in _parts(each, nested)]


@functools.cache
def _byte_level_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, the alphabet of every byte-level BPE vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}
