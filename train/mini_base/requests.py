"""Requests made up from facts: the text that the mini base is pre-trained on, and generated datasets.

A request is composed from the phrase book `train/mini_base/phrases.toml`: a core (what is wanted), a frame
around it, clauses that state or deny a fact, and noise that decides nothing. Each core and each frame is a
family. Families are held out whole: a phrase's hash puts it into `train`, `validation` or `test`, and a
generator for one split uses the phrases of that split only. What is right for the facts is the caller's
policy; nothing here knows it.
"""

import dataclasses
import functools
import hashlib
import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from train.mini_base.wording import Register, capitalise, inflect, restyle

PHRASES = Path(__file__).with_name("phrases.toml")
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT = {"core", "frame"}  # the tables of the phrase book whose entries are families
FACT_VALUES: dict[str, tuple[Any, ...]] = {
    "need": ("knowledge", "analytics", "build"),
    "writes": (False, True),
    "autonomous": (False, True),
    "regulated": (False, True),
    "system": ("none", "Salesforce", "ServiceNow"),
}
# short fillers inside [core]: holding these out would only remove words
SHARED_LISTS = {
    "thing",
    "rec_ing",
    "read_vp",
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a labeller reads off a request, as `[policy.facts]` of the contract has it."""

    need: str  # knowledge, analytics or build
    writes: bool = False
    autonomous: bool = False
    regulated: bool = False
    system: str = "none"  # none, Salesforce or ServiceNow

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Request:
    """A generated request: its text, the facts it was made from, and the families of its core and frame."""

    text: str
    facts: Facts
    family: str
    summary: str  # the core without its frame and noise, which a one-sentence reason can quote


@functools.cache
def phrase_book() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads(PHRASES.read_text(encoding="utf-8"))


@functools.cache
def families(table: str, name: str, split: Split | None) -> list[str]:
    """The phrases of one list that a generator for `split` may use; all of them for None.

    A tenth of each list, at least one phrase, goes to validation and as much to test, in the order of their
    hashes.
    """
    phrases = phrase_book()[table][name]
    if split is None or table not in HELD_OUT or name in SHARED_LISTS:
        return phrases
    ranked = sorted(phrases, key=lambda phrase: hashlib.sha256(phrase.encode()).digest())
    share = max(1, round(len(phrases) / 10))
    parts = {"validation": ranked[:share], "test": ranked[share : 2 * share], "train": ranked[2 * share :]}
    return parts[split]


def sample_facts(rng: random.Random) -> Facts:
    """Facts over all cells of the table, builds a half of them because they have the most cells."""
    need = rng.choices(["knowledge", "analytics", "build"], [0.27, 0.25, 0.48])[0]
    regulated = rng.random() < 0.33
    if need != "build":
        return Facts(need, regulated=regulated)
    system = rng.choices(["none", "Salesforce", "ServiceNow"], [0.44, 0.28, 0.28])[0]
    return Facts(need, rng.random() < 0.5, rng.random() < 0.25, regulated and rng.random() < 0.8, system)


def requests(rng: random.Random, split: Split | None = None) -> Iterator[Request]:
    """An endless stream of requests; the same seed gives the same stream."""
    while True:
        yield compose(sample_facts(rng), rng, split)


def compose(facts: Facts, rng: random.Random, split: Split | None = None, noise: float = 1.0) -> Request:
    """One request of which `facts` hold. `noise` scales how often clauses that decide nothing are added."""
    return _Composer(facts, rng, split, noise).request()


class _Composer:
    """Fills one request's slots; the slots that carry facts follow `facts`."""

    def __init__(self, facts: Facts, rng: random.Random, split: Split | None, noise: float) -> None:
        self.facts, self.rng, self.split, self.noise = facts, rng, split, noise
        # Either the objects of a regulated request are regulated themselves, or a clause says so.
        self.regulated_objects = facts.regulated and rng.random() < 0.75
        self.system_said = False

    def request(self) -> Request:
        rng = self.rng
        register = Register.sample(rng)
        core, form = self._core()
        frame = self._frame(form)
        forms = self._forms(core, form == "vp")
        summary = forms["ving"] if form == "vp" else forms["np"]
        main = self._fill(re.sub(r"\{(vp|ving|vps|np)\}", lambda m: forms[m[1]], frame))
        parts = [main, *self._fact_clauses()]
        parts += [self._fill(p) for p in self._noise_clauses()]
        if len(parts) > 2 and rng.random() < 0.5:  # the order of what follows the main sentence is free
            tail = parts[1:]
            rng.shuffle(tail)
            parts = [main, *tail]
        if len(parts) > 1 and rng.random() < 0.12:  # a clause may come first
            parts.insert(0, parts.pop())
        if rng.random() < 0.08 * self.noise:
            parts.insert(0, self._fill(rng.choice(phrase_book()["noise"]["before"])))
        text = " ".join(capitalise(part) for part in parts if part)
        if register.letter:
            text = self._letter(text)
        return Request(restyle(text, register, rng), self.facts, f"{frame} | {core}", summary)

    def _letter(self, text: str) -> str:
        book, rng = phrase_book()["noise"], self.rng
        gap = rng.choice([" ", "\n", "\n\n"])
        if rng.random() < 0.7:
            text = rng.choice(book["greeting"]) + gap + text
        return text + gap + self._fill(rng.choice(book["closing"])) if rng.random() < 0.6 else text

    def _pick(self, table: str, name: str) -> str:
        return self.rng.choice(families(table, name, self.split))

    def _core(self) -> tuple[str, str]:
        """A core phrase and its form: `vp` a verb phrase, `np` a thing, `thing` one to be built, `s` a
        sentence.
        """
        need = self.facts.need
        form = self.rng.choices(["vp", "np", "s"], [0.46, 0.26, 0.28])[0]
        if need != "build":
            return self._pick("core", need if form == "vp" else f"{need}_{form}"), form
        kind = "write" if self.facts.writes else "read"
        if form == "s":
            return self._pick("core", f"build_{kind}_s"), form
        if self.rng.random() < 0.5:
            return self._pick("core", f"build_vp_{kind}"), "vp"
        # Actions are families too: each is drawn from the split's own list and becomes a part of the family.
        return self._pick("core", "build_np").replace("{act}", self._pick("core", f"build_{kind}")), "thing"

    def _frame(self, form: str) -> str:
        if form == "s":
            return "{np}"
        names = {"vp": ["person_vp", "we_vp"], "thing": ["build_np", "np"], "np": ["np"]}[form]
        return self._pick("frame", self.rng.choices(names, [0.4, 0.6][: len(names)])[0])

    def _forms(self, core: str, is_vp: bool) -> dict[str, str]:
        filled = self._adverb(self._fill(core))
        if not is_vp:
            return {"np": filled}
        return {form: inflect(filled, form) for form in ("vp", "ving", "vps")}

    def _adverb(self, core: str) -> str:
        """Say in the core itself, half of the time, who decides; a clause says it otherwise."""
        self.decider_said = False
        if self.facts.need != "build" or self.rng.random() < 0.5:
            return core
        if self.facts.autonomous:
            self.decider_said = True
            return f"{core} {self._pick('clause', 'auto_adv')}"
        if self.facts.writes and self.rng.random() < 0.6:
            self.decider_said = True
            return f"{core} {self._pick('clause', 'super_adv')}"
        return core

    def _fact_clauses(self) -> list[str]:
        facts, rng, clauses = self.facts, self.rng, []
        if facts.regulated and not (self.regulated_objects and self.regulated_said):
            clauses.append(self._pick("clause", "regulated"))
        elif not facts.regulated and rng.random() < 0.10 * self.noise:
            clauses.append(self._pick("clause", "unregulated"))
        if facts.need == "build":
            if facts.autonomous and not self.decider_said:
                clauses.append(self._pick("clause", "autonomous"))
            elif not facts.autonomous and not self.decider_said and rng.random() < 0.25:
                clauses.append(self._pick("clause", "supervised"))
            if facts.system != "none" and not self.system_said:
                clauses.append(self._pick("object", f"clause_{facts.system.lower()}"))
        if not facts.writes and rng.random() < (0.35 if facts.need == "build" else 0.08):
            clauses.append(self._pick("clause", "readonly"))
        rng.shuffle(clauses)
        return clauses

    def _noise_clauses(self) -> list[str]:
        rng, book = self.rng, phrase_book()["noise"]
        count = rng.choices([0, 1, 2, 3], [0.72, 0.19, 0.06, 0.03])[0] if self.noise else 0
        clauses = [rng.choice(book["sentence"]) for _ in range(count)]
        if self.facts.system == "none" and rng.random() < 0.12 * self.noise:
            free = self.facts.need != "build" and rng.random() < 0.5
            clauses.append(rng.choice(book["mention_free" if free else "mention"]))
        return clauses

    # ------------------------------------------------------------------ slots

    def _fill(self, phrase: str) -> str:
        while True:
            slot = re.search(r"\{(\w+)\}", phrase)
            if slot is None:
                return phrase
            phrase = phrase[: slot.start()] + self._slot(slot[1]) + phrase[slot.end() :]

    regulated_said = False

    def _slot(self, name: str) -> str:
        if name[0].isupper():
            return capitalise(self._fill(self._slot(name[0].lower() + name[1:])))
        book, rng = phrase_book(), self.rng
        if name in ("docs", "data"):
            return self._content(name)
        if name == "rec":
            return self._record()
        if name in ("read", "write"):
            return self._pick("core", f"build_{name}")
        if name in SHARED_LISTS:
            return rng.choice(book["core"][name])
        return self._who() if name == "who" else rng.choice(book["fill"][name])

    def _content(self, kind: str) -> str:
        """Documents or data. For a build the ones of a system would name what it integrates with."""
        book, rng, facts = phrase_book()["object"], self.rng, self.facts
        if self.regulated_objects and (not self.regulated_said or rng.random() < 0.5):
            self.regulated_said = True
            value = rng.choice(book[f"{kind}_regulated"])
        elif facts.need != "build" and rng.random() < 0.15:
            return rng.choice(book[f"{kind}_system"])
        else:
            value = rng.choice(book[f"{kind}_plain"])
        if facts.need == "build" and facts.system != "none" and (not self.system_said or rng.random() < 0.1):
            if not facts.writes and rng.random() < 0.7:
                self.system_said = True
                return f"{value} {rng.choice(book['in_' + facts.system.lower()])}"
        elif facts.need == "build" and facts.system == "none" and rng.random() < 0.12:
            return f"{value} {self._fill(rng.choice(book['in_other']))}"
        elif facts.need != "build" and rng.random() < 0.1:
            place = rng.choice(["in_salesforce", "in_servicenow", "in_other", "in_other"])
            return f"{value} {self._fill(rng.choice(book[place]))}"
        elif facts.writes and facts.system != "none" and rng.random() < 0.08:
            # A build that names both systems: the one that it writes to decides, this is the other one.
            other = "servicenow" if facts.system == "Salesforce" else "salesforce"
            return f"{value} {rng.choice(book['in_' + other])}"
        return value

    def _record(self) -> str:
        """Records that are written: of the system, if there is one, and regulated, if the objects are."""
        book, rng, facts = phrase_book()["object"], self.rng, self.facts
        regulated = self.regulated_objects and (not self.regulated_said or rng.random() < 0.5)
        self.regulated_said = self.regulated_said or regulated
        value = rng.choice(book["rec_regulated" if regulated else "rec_plain"])
        if facts.system == "none":
            return f"{value} {self._fill(rng.choice(book['in_other']))}" if rng.random() < 0.5 else value
        if self.system_said and rng.random() < 0.6:
            return value
        self.system_said = True
        if not regulated and rng.random() < 0.6:
            return rng.choice(book[f"rec_{facts.system.lower()}"])
        return f"{value} {rng.choice(book['in_' + facts.system.lower()])}"

    def _who(self) -> str:
        book, rng = phrase_book()["fill"], self.rng
        dept, kind = rng.choice(book["dept"]), rng.random()
        if kind < 0.35:
            role = rng.choice(book["role"])
            bare = dept.removeprefix("the ")
            value = f"{'an' if bare[0] in 'aeioHI' else 'a'} {bare} {role}"  # an HR clerk, an IT lead
        elif kind < 0.55:
            value = (
                f"{rng.choice(['our', 'the'])} {dept.removeprefix('the ')} "
                f"{rng.choice(['team', 'department', 'group', 'folks', 'people'])}"
            )
        elif kind < 0.65:
            value = dept
        else:
            value = rng.choice(book["person"])
        return value
