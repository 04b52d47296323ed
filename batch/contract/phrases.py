"""Phrases of a contract: words with spaces; `a|b` is either word, `...` up to three words."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from batch.contract import validation
from batch.errors import ContractError

GAP = 3  # words that `...` may stand for
JOINT = r"(?:\s+|-)"  # between two words: a snow day is a snow-day
# Letters and signs of scripts that put no space between words (Thai to Myanmar, Khmer, Chinese, Japanese) or
# write particles right behind one (Korean), for a character class. Next to them any word begins and ends.
UNSPACED = (
    "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3041-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc"
)
_UNSPACED = re.compile(f"[{UNSPACED}]")


def phrases(value: Any, where: str) -> tuple[str, ...]:
    """A list of phrases as a contract has it. Raises `ContractError`."""
    return tuple(_phrase(each, where) for each in validation.items(value, where))


def any_of(known: Iterable[str]) -> str:
    """Expression of any of the phrases, in whole words; of none, one that nothing matches."""
    composed = [unicodedata.normalize("NFC", phrase) for phrase in known]
    return whole_words([(phrase, _expression(phrase)) for phrase in composed], hyphens=True)


def whole_words(known: Iterable[tuple[str, str]], hyphens: bool = False) -> str:
    """Expression of any of the phrases, each with its own expression, where no word goes on in front of it or
    behind it, with `hyphens` not by one either; of none, one that nothing matches.
    """
    inside = f"[{_inside_words()}{'-' * hyphens}]"
    by_edges: dict[tuple[str, str], list[str]] = {}
    for phrase, expression in known:
        first, last = (_UNSPACED.match(letter) for letter in (phrase.strip()[0], phrase.strip()[-1]))
        edges = "" if first else f"(?<!{inside})", "" if last else f"(?!{inside})"
        by_edges.setdefault(edges, []).append(expression)
    parts = [f"{front}(?:{'|'.join(each)}){behind}" for (front, behind), each in by_edges.items()]
    return f"(?:{'|'.join(parts)})" if parts else "(?!)"


@functools.cache
def _inside_words() -> str:
    """Letters, digits and the signs on them (no `\\w`) of scripts with spaces between words, for a character
    class. Of Unicode's first plane alone: a class of more takes several times as long.
    """
    letters = map(chr, range(1 << 16))
    inside = [
        ord(letter)
        for letter in letters
        if (letter.isalnum() or letter == "_" or unicodedata.category(letter)[0] == "M")
        and not _UNSPACED.match(letter)
    ]
    runs = itertools.groupby(enumerate(inside), lambda pair: pair[1] - pair[0])
    bounds = [[point for _, point in run] for _, run in runs]
    return "".join(f"{chr(points[0])}-{chr(points[-1])}" for points in bounds)


def _phrase(value: Any, where: str) -> str:
    phrase = validation.text(value, where)
    if not all(word.strip("|.") for word in phrase.split(" ") if word != "...") or not phrase.strip(". "):
        raise ContractError(f"{where}: {phrase!r} is not a phrase of words")
    return phrase


def _expression(phrase: str) -> str:
    words = []
    for word in phrase.split():
        either = "|".join(map(re.escape, word.split("|")))
        words.append(rf"(?:[\w'-]+\s+){{0,{GAP}}}" if word == "..." else rf"(?:{either}){JOINT}")
    return "".join(words).removesuffix(JOINT)
