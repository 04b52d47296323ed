"""Rules that hold whatever the model says. A run counts every violation, and corrects it where the contract
says so.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from batch.contract import validation
from batch.errors import ContractError, nearest

# A negated mention is none: "no Salesforce involved", "neither Salesforce nor …", "Salesforce is not needed",
# "we left Salesforce for …", "Salesforce was retired"; "no-code" and "do-not-call" negate nothing. Words, not
# grammar: what is told in another way counts as a mention.
_NEGATED_BEFORE = re.compile(
    r"(?<![\w-])(?:(?:no|not|never|without|nothing|isn't|doesn't|don't|neither|nor"
    r"|avoid(?:s|ing)?|excluding|except|unlike|instead of"
    r"|rather than)(?![\w-])[^.;,!?]{0,30}"
    r"|(?:left|dropped|retired|replaced|threw(?: out)?|got rid of|(?:good)?bye to"
    r"|(?:away|moved|migrated|switched) (?:from|off)) )$",
    re.I,
)
_NEGATED_AFTER = re.compile(
    r"^[^.;,!?]{0,20}\b(?:(?:is|are|was)?\s*(?:not|n't|never)\b(?: \w+){0,2} "
    r"(?:involved|used|needed|touched|part|relevant|required|affected)"
    r"|(?:is|was|has been|will be) (?:gone|retired|replaced|thrown out|switched off"
    r"|phased out|out of scope|excluded)"
    r"|(?:stays|is kept) out|out of (?:it|this)|plays? no (?:role|part)|has nothing to do)\b",
    re.I,
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """When an answer holds the values `when`, either other fields are among `allow`, or the request mentions
    one of `mentions` (whole words, any case, not negated). `then` are the values that correct an answer which
    breaks it; where `allow` leaves one value, that one does."""

    name: str
    when: Mapping[str, Any]
    allow: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    mentions: tuple[str, ...] = ()
    # what an enforced rule puts in their place
    then: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, entry: Any, fields: Mapping[str, Any]) -> "Rule":
        """Compile one `[[rules]]` entry against the contract's fields by name; raises `ContractError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        validation.keys(entry, "[[rules]]", required={"name", "when"}, optional=known)
        where = f"rule {validation.text(entry['name'], '[[rules]] name')!r}"
        if bool(entry.get("allow")) == ("mentions" in entry):
            raise ContractError(f"{where}: needs either allow or mentions")
        when, allow = (
            validation.table(entry["when"], f"{where}: when"),
            validation.table(entry.get("allow", {}), f"{where}: allow"),
        )
        then = validation.table(entry.get("then", {}), f"{where}: then")
        named = [(name, [value]) for name, value in [*when.items(), *then.items()]]
        named += [
            (name, validation.items(values, f"{where}: allow {name}")) for name, values in allow.items()
        ]
        for name, values in named:
            if name not in fields:
                raise ContractError(f"{where}: unknown field {name!r}{nearest(name, list(fields))}")
            for value in values:
                if not validation.among(value, fields[name].values):
                    raise ContractError(f"{where}: {value!r} is no legal value of {name}")
        mentions = validation.items(entry["mentions"], f"{where}: mentions") if "mentions" in entry else []
        words = tuple(validation.text(word, f"{where}: mentions") for word in mentions)
        if not all(word.strip() for word in words):
            raise ContractError(f"{where}: mentions holds a blank text, which every request mentions")
        allowed = {name: tuple(values) for name, values in allow.items()}
        if any(not validation.among(then[name], values) for name, values in allowed.items() if name in then):
            raise ContractError(f"{where}: then holds a value that allow refuses")
        only = {name: values[0] for name, values in allowed.items() if len(values) == 1}
        rule = cls(entry["name"], dict(when), allowed, words, {**only, **then})
        if then and not rule._cures():
            raise ContractError(
                f"{where}: an answer corrected to its then would still break it; "
                "change a field of when, or one of allow"
            )
        return rule

    def _cures(self) -> bool:
        """Whether an answer corrected to `then` keeps the rule."""
        left = any(name in self.then and self.then[name] != value for name, value in self.when.items())
        return left or (bool(self.allow) and set(self.allow) <= set(self.then))

    @property
    def corrects(self) -> bool:
        return bool(self.then) and self._cures()

    def applies(self, answer: Mapping[str, Any]) -> bool:
        """Whether the rule speaks of answers like this one."""
        return all(answer[name] == value for name, value in self.when.items())

    def holds(self, answer: Mapping[str, Any], request: str) -> bool:
        return not self.applies(answer) or self.allows(answer, request)

    def allows(self, answer: Mapping[str, Any], request: str) -> bool:
        """Whether an answer that the rule applies to keeps it."""
        if self.mentions:
            return self.mentioned(request)
        return all(answer[name] in values for name, values in self.allow.items())

    def mentioned(self, request: str) -> bool:
        """Whether `request` holds one of the `mentions`, not negated."""
        return any(not _negated(request, match) for match in self._mention.finditer(request))

    @functools.cached_property
    def _mention(self) -> re.Pattern[str]:
        words = "|".join(re.escape(word) for word in self.mentions)
        return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.I)


def _negated(text: str, match: re.Match[str]) -> bool:
    before = text[max(0, match.start() - 60) : match.start()]
    after = text[match.end() : match.end() + 60]
    return bool(_NEGATED_BEFORE.search(before) or _NEGATED_AFTER.search(after))
