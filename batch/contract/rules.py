"""Rules that hold whatever the model says. A run counts every violation, and corrects it where the contract
says so.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal

from batch.contract import validation
from batch.contract.fields import Field
from batch.contract.negation import Negation
from batch.contract.phrases import JOINT, any_of, phrases, whole_words
from batch.errors import ContractError, nearest

Mention = Literal["absent", "denied", "meant"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """When an answer holds the values `when`, either other fields are among `allow`, or the request mentions
    one of `mentions` (whole words, any case, not negated, and not in one of the `homonyms`). `then` are the
    values that correct an answer which breaks it; where `allow` leaves one value, that one does."""

    name: str
    when: Mapping[str, Any]
    allow: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    mentions: tuple[str, ...] = ()
    # phrases that hold such a word in another sense
    homonyms: tuple[str, ...] = ()
    # what an enforced rule puts in their place
    then: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # the contract's
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict, repr=False)
    negation: Negation = dataclasses.field(default_factory=Negation, repr=False)

    @classmethod
    def from_dict(cls, entry: Any, fields: Mapping[str, Field], negation: Negation) -> "Rule":
        """Compile one `[[rules]]` entry against the contract's fields by name; raises `ContractError`."""
        known = {"allow", "mentions", "homonyms", "then"}
        validation.keys(entry, "[[rules]]", required={"name", "when"}, optional=known)
        where = f"rule {validation.text(entry['name'], '[[rules]] name')!r}"
        if bool(entry.get("allow")) == ("mentions" in entry):
            raise ContractError(f"{where}: needs either allow or mentions")
        when = _values(entry["when"], f"{where}: when", fields, choices=True)
        then = _values(entry.get("then", {}), f"{where}: then", fields)
        listed = validation.table(entry.get("allow", {}), f"{where}: allow")
        allow = {
            name: tuple(
                _value(name, value, where, fields, choices=True)
                for value in validation.items(values, f"{where}: allow {name}")
            )
            for name, values in listed.items()
        }
        mentions = validation.items(entry["mentions"], f"{where}: mentions") if "mentions" in entry else []
        words = tuple(validation.text(word, f"{where}: mentions") for word in mentions)
        if not all(word.strip() for word in words):
            raise ContractError(f"{where}: mentions holds a blank text, which every request mentions")
        homonyms = phrases(entry["homonyms"], f"{where}: homonyms") if "homonyms" in entry else ()
        if homonyms and not words:
            raise ContractError(f"{where}: homonyms are of mentions, and it has none")
        if any(not fields[name].within(then[name], values) for name, values in allow.items() if name in then):
            raise ContractError(f"{where}: then holds a value that allow refuses")
        only = {
            name: values[0]
            for name, values in allow.items()
            if len(values) == 1 and fields[name].legal(values[0])
        }
        rule = cls(entry["name"], when, allow, words, homonyms, {**only, **then}, fields, negation)
        if then and not rule._cures():
            raise ContractError(
                f"{where}: an answer corrected to its then would still break it; "
                "change a field of when, or one of allow"
            )
        return rule

    def _cures(self) -> bool:
        """Whether an answer corrected to `then` keeps the rule."""
        left = any(
            name in self.then and not self.fields[name].matches(self.then[name], value)
            for name, value in self.when.items()
        )
        return left or (bool(self.allow) and set(self.allow) <= set(self.then))

    @property
    def corrects(self) -> bool:
        return bool(self.then) and self._cures()

    def applies(self, answer: Mapping[str, Any]) -> bool:
        """Whether the rule speaks of answers like this one."""
        return all(self.fields[name].matches(answer[name], value) for name, value in self.when.items())

    def allows(self, answer: Mapping[str, Any], request: str) -> bool:
        """Whether an answer that the rule applies to keeps it."""
        if self.mentions:
            return self.mentioned(request)
        return all(self.fields[name].within(answer[name], values) for name, values in self.allow.items())

    def mention(self, request: str) -> Mention:
        """How `request` speaks of the `mentions`: `denied` where it holds some, and each is negated or a
        homonym, so that it may have been misread.
        """
        if not (request.isascii() or unicodedata.is_normalized("NFC", request)):
            request = unicodedata.normalize("NFC", request)
        if not self._mention.search(request):
            return "absent"  # most requests: nothing else of them is read
        plain = self.negation.plain(request)
        named = self._mention.finditer(self._homonym.sub(self._cross_out, request))
        meant = any(not self.negation.denies(plain, *match.span()) for match in named)
        return "meant" if meant else "denied"

    def mentioned(self, request: str) -> bool:
        """Whether `request` holds one of the `mentions`, not negated, in its own sense."""
        return self.mention(request) == "meant"

    def _cross_out(self, homonym: re.Match[str]) -> str:
        """The same length without its words, unless one has the capitals that it has in `mentions`, so is
        meant.
        """
        meant = any(word in homonym[0] for word in self.mentions if word.upper() != word.lower())
        return homonym[0] if meant else "_" * len(homonym[0])

    @functools.cached_property
    def _homonym(self) -> re.Pattern[str]:
        return re.compile(any_of(self.homonyms), re.I)

    @functools.cached_property
    def _mention(self) -> re.Pattern[str]:
        words = [unicodedata.normalize("NFC", word) for word in self.mentions]
        return re.compile(
            whole_words((word, JOINT.join(map(re.escape, word.split()))) for word in words), re.I
        )


def _values(table: Any, where: str, fields: Mapping[str, Field], choices: bool = False) -> dict[str, Any]:
    content = validation.table(table, where)
    return {name: _value(name, value, where, fields, choices) for name, value in content.items()}


def _value(name: str, value: Any, where: str, fields: Mapping[str, Field], choices: bool = False) -> Any:
    """A legal value of the field `name`, or with `choices` one that its values hold."""
    if name not in fields:
        raise ContractError(f"{where}: unknown field {name!r}{nearest(name, list(fields))}")
    field, meant = fields[name], fields[name].read(value)
    if not field.scored or not (field.legal(meant) or (choices and validation.among(meant, field.values))):
        raise ContractError(f"{where}: {value!r} is not a legal value of {name}")
    return meant
