"""How a generated request is said: verb forms, registers, spelling, typos."""

import dataclasses
import random
import re

_DOUBLED = {
    "plan",
    "plot",
    "drag",
    "stop",
    "get",
    "set",
    "cut",
    "put",
    "map",
    "ship",
    "run",
    "dig",
    "skim",
    "let",
}
_BRITISH = re.compile(
    r"\b(summar|organ|prior|visual|util|minim|author|central|autom|standard|categor|recogn)is(e|es|ed|ing|ation)\b",
    re.I,
)


@dataclasses.dataclass(frozen=True)
class Register:
    """The manner of one request."""

    letter: bool  # greeting and closing
    lower: bool  # no capitals
    shout: bool  # all capitals
    bare: bool  # no final punctuation
    typos: int
    american: bool

    @classmethod
    def sample(cls, rng: random.Random) -> "Register":
        chat = rng.random() < 0.15
        return cls(
            letter=rng.random() < 0.07,
            lower=chat,
            shout=not chat and rng.random() < 0.01,
            bare=chat or rng.random() < 0.2,
            typos=rng.choices([0, 1, 2, 3], [0.86, 0.09, 0.03, 0.02])[0],
            american=rng.random() < 0.5,
        )


def capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def inflect(phrase: str, form: str) -> str:
    """Give the verbs that a caret marks their form: `vp` base, `ving` gerund, `vps` third person."""
    return re.sub(r"\^(\w+)", lambda match: _verb(match[1], form), phrase)


def _verb(verb: str, form: str) -> str:
    if form == "ving":
        if verb in _DOUBLED:
            return verb + verb[-1] + "ing"
        return (verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else verb) + "ing"
    if form == "vps":
        if verb == "have":
            return "has"
        if verb.endswith(("s", "x", "ch", "sh")) or verb == "do":
            return verb + "es"
        return verb[:-1] + "ies" if re.search(r"[^aeiou]y$", verb) else verb + "s"
    return verb


def restyle(text: str, register: Register, rng: random.Random) -> str:
    """Apply a register: spelling, typos, case, final punctuation."""
    if register.american:
        text = _BRITISH.sub(r"\1iz\2", text).replace("analyse", "analyze")
    for _ in range(register.typos):
        text = typo(text, rng)
    if register.lower:
        text = text.lower()
    elif register.shout:
        text = text.upper()
    return text.rstrip(".") if register.bare else text


def typo(text: str, rng: random.Random) -> str:
    """One slip of the keyboard inside a word: a letter dropped, doubled or swapped with its neighbour."""
    places = [i for i in range(1, len(text) - 2) if text[i - 1 : i + 2].isalpha()]
    if not places:
        return text
    at = rng.choice(places)
    slip = rng.randrange(3)
    if slip == 0:
        return text[:at] + text[at + 1 :]
    if slip == 1:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
