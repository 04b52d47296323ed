"""Negation: a system that a request names and denies is not mentioned ("without our wiki").

The words are the contract's, by language (`[negation.en]`); a contract without the table has none, and every
mention counts: the code knows no language. They are words, not a grammar, so a denial in other words counts
as a mention, and now and then one is seen where there is none. Rules therefore never correct an answer on the
strength of a denial (:meth:`Rule.denied`).
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, Self

from batch.contract import validation
from batch.contract.phrases import any_of, phrases

BEFORE = 30  # characters between a word that denies and what it denies
AFTER = 20
SEEN = 60  # characters of the request that are looked at on either side
STOPS = r"[.;,!?:()\n–—]"  # a denial does not reach over them

KINDS = {
    "before": "denies what follows in its clause",
    "close_before": "denies what follows at once",
    "after": "denies what stands in front of it",
    "breaks": "ends a clause as a comma does",
    "affirms": "behind what is denied, says that it is meant after all",
    "harmless": "holds a word that denies, and denies nothing",
}


@dataclasses.dataclass(frozen=True)
class Negation:
    """Phrases of every kind, of all languages together."""

    phrases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: Any) -> Self:
        """Compile `[negation]`; raises `ContractError`."""
        found: dict[str, tuple[str, ...]] = dict.fromkeys(KINDS, ())
        for language, lists in validation.table(raw, "[negation]").items():
            where = f"[negation.{language}]"
            for kind, listed in validation.keys(lists, where, optional=KINDS).items():
                found[kind] += phrases(listed, f"{where} {kind}")
        return cls(found)

    def plain(self, text: str) -> str:
        """`text` at the same length, with its harmless phrases crossed out."""
        text = text.replace("\u2019", "'")
        return self._harmless.sub(lambda match: "_" * len(match[0]), text)

    def denies(self, plain: str, start: int, end: int) -> bool:
        """Whether what stands at `start` to `end` of a :meth:`plain` text is denied."""
        clause = self._breaks.split(plain[max(0, start - SEEN) : start])[-1]
        behind = plain[end : end + SEEN]
        return bool(self._before.search(clause) or self._after.match(behind)) and not self._affirms.match(
            behind
        )

    @functools.cached_property
    def _before(self) -> re.Pattern[str]:
        far, close = self._any("before"), self._any("close_before")
        return re.compile(f"(?:{far}.{{0,{BEFORE}}}|{close} )$", re.I)

    @functools.cached_property
    def _after(self) -> re.Pattern[str]:
        near = f"(?:(?!{STOPS}).){{0,{AFTER}}}|\\s*:\\s*"  # or as in a form: "CRM: not used"
        return re.compile(f"(?:{near}){self._any('after')}", re.I)

    @functools.cached_property
    def _affirms(self) -> re.Pattern[str]:
        return re.compile(f"(?:(?!{STOPS}).)*{self._any('affirms')}", re.I)

    @functools.cached_property
    def _breaks(self) -> re.Pattern[str]:
        return re.compile(f"{STOPS}|{self._any('breaks')}", re.I)

    @functools.cached_property
    def _harmless(self) -> re.Pattern[str]:
        return re.compile(self._any("harmless"), re.I)

    def _any(self, kind: str) -> str:
        return any_of(self.phrases.get(kind, ()))
