"""The fast tokenizer gives the ids of the one that the base model was trained with, or is not used."""

import json
import random
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastokens
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.adapter import vocabulary
from batch.adapter.vocabulary import Encoder, Vocabulary
from batch.errors import AdapterError
from tests import qwen
from tests.conftest import ROOT
from tests.families import FAMILIES, trained

MINI = ROOT / "data/mini-base"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
NOBODYS = {"Cn", "Co", "Cs"}  # of Unicode: not assigned, private, surrogates
TEXTS = [
    "",
    " ",
    "A sales analyst wants 1,200 rows.\r\n\n  - it's 9:30",
    "naïve e\u0301 한국어 \U0001f469\u200d\U0001f467",
    "\x00\x85\xa0",
]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Vocabulary.read(qwen.build(tmp_path_factory.mktemp("qwen"))).continuing


@pytest.fixture(scope="module")
def composing() -> Encoder:
    """Its tokenizer has a normaliser too."""
    return Vocabulary.read(MINI).continuing


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The mini base's tokenizer, changed, in `folder`."""
    content = json.loads((MINI / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def split(expression: str) -> Callable[[dict[str, Any]], object]:
    by = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    parts = {"type": "Sequence", "pretokenizers": [by, BYTE_LEVEL]}
    return lambda content: content.update(pre_tokenizer=parts)


@pytest.mark.parametrize("name", ["real", "composing"])
def test_every_character(name: str, request: pytest.FixtureRequest) -> None:
    """Each that is assigned, among letters, digits, spaces, signs and its own kind: two libraries for
    expressions, each with its own version of Unicode.
    """
    encoder: Encoder = request.getfixturevalue(name)
    assert encoder._fast
    some = range(0, sys.maxunicode, 0x101)  # of those that are nobody's, or somebody's own
    points = [p for p in range(sys.maxunicode) if p in some or unicodedata.category(chr(p)) not in NOBODYS]
    for start in range(0, len(points), 20_000):
        characters = (chr(p) for p in points[start : start + 20_000] if not 0xD800 <= p < 0xE000)
        texts = [f"a{c}b 1{c}2 {c}{c}x !{c} {c}\u0301" for c in characters]
        assert encoder._quickly(texts) == encoder._slowly(texts)


PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "'s",
            "'LL",
            "don't",
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "\u3000",
            "12345",
            "<|im_end|>",
            "한국",
            "e\u0301",
            "ſ",
            "...",
            "</think>",
        ]
    ),
)


@given(st.lists(PIECES, max_size=30).map("".join))
@settings(max_examples=1500, deadline=None)
def test_any_text(real: Encoder, composing: Encoder, text: str) -> None:
    for encoder in (real, composing):
        assert encoder._quickly([text]) == encoder._slowly([text])


def test_long_texts(real: Encoder) -> None:
    """The fast one cuts texts above 16 KiB into pieces, which it matches on all cores."""
    chance = random.Random(1)
    letters, digits = (
        "".join(chance.choices("abcdefghij", k=40_000)),
        "".join(chance.choices("0123456789", k=9000)),
    )
    texts = [
        " " * 40_000,
        "\n" * 30_000,
        "a" * 20_000,
        letters,
        letters + " " * 3000 + digits,
        "e\u0301" * 9000,
        "你好" * 9000,
    ]
    texts += [
        ("x" * 900 + " " * 1500 + "\n") * 16,
        "".join(chance.choices("ab 1!\n'é你", k=60_000)),
        "!" * 20_000,
    ]
    assert real._quickly(texts) == real._slowly(texts)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(trained(name), encoding="utf-8")
    read = Vocabulary.read(tmp_path)
    for encoder in (read.opening, read.continuing):
        assert encoder._quickly(TEXTS) == encoder._slowly(TEXTS)
        assert (encoder._fast is not None) == ('"ByteLevel"' in trained(name)), (
            "SentencePiece is for the other"
        )


def test_the_fast_one_is_loaded_once_it_saves_more_time_than_it_takes(tmp_path: Path) -> None:
    encoder = Vocabulary.read(edited(tmp_path, split(r"[\w]|\W"))).continuing
    loaded, size = vars(encoder), encoder._slow.get_vocab_size()
    found = [encoder.ids(TEXTS)]
    assert "_fast" not in loaded
    encoder.ids(["a"] * (size // 3))
    assert loaded["_fast"] and [encoder.ids(TEXTS)] == found


def test_what_it_does_not_know_is_left_to_the_other(tmp_path: Path) -> None:
    parts = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTE_LEVEL]}
    folder = edited(tmp_path, lambda content: content.update(pre_tokenizer=parts))
    encoder = Vocabulary.read(folder).continuing
    assert encoder._fast is None and encoder._quickly(TEXTS) == encoder._slowly(TEXTS)


def test_a_machine_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "fastokens", None)
    encoder = Vocabulary.read(edited(tmp_path, split(r"\w|\W"))).continuing
    assert encoder._fast is None and encoder._quickly(TEXTS) == encoder._slowly(TEXTS)


def test_other_ids_of_the_vocabularys_words_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fastokens.Tokenizer.from_file(str(edited(tmp_path, split(r"\s|\S+")) / "tokenizer.json"))

    class Wrong:
        from_json_str = staticmethod(lambda text: other)

    monkeypatch.setattr(fastokens, "Tokenizer", Wrong)
    encoder = Vocabulary.read(edited(tmp_path, split(r".|\n"))).continuing
    assert encoder._fast is None and encoder._quickly(["a b"]) == encoder._slowly(["a b"])


def test_a_text_on_which_its_matcher_gives_up(tmp_path: Path) -> None:
    """Its expressions have a limit; one text of a batch must not end the batch."""
    encoder = Vocabulary.read(edited(tmp_path, split(r"(?:a+)+b|.|\n"))).continuing
    assert encoder._fast
    hard = "a" * 24
    with pytest.raises(ValueError, match="limit exceeded"):
        encoder._fast.encode_batch([hard])
    assert encoder._quickly(["easy", hard]) == encoder._slowly(["easy", hard])


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_marks_that_are_no_text_are_refused(key: str, tmp_path: Path) -> None:
    """They would stand in answers; and `tokenizers` ends the process on some."""
    with pytest.raises(AdapterError, match="cannot spell every text"):
        Vocabulary.read(edited(tmp_path, lambda content: content["model"].update({key: "##"})))
