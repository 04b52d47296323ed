"""Phrases of a contract: words with spaces; `a|b` is either word, `...` up to three words."""

import re
from collections.abc import Iterable
from typing import Any

from batch.contract import validation
from batch.errors import ContractError

GAP = 3  # words that `...` may stand for
JOINT = r"(?:\s+|-)"  # between two words: a snow day is a snow-day


def phrases(value: Any, where: str) -> tuple[str, ...]:
    """A list of phrases as a contract has it. Raises `ContractError`."""
    return tuple(_phrase(each, where) for each in validation.items(value, where))


def any_of(known: Iterable[str]) -> str:
    """Expression of any of the phrases, in whole words; of none, one that nothing matches."""
    listed = "|".join(_expression(phrase) for phrase in known)
    return rf"(?<![\w-])(?:{listed})(?![\w-])" if listed else "(?!)"


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
