"""The policy table: the facts that a labeller reads off a request → the answer that the contract wants."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

from batch.contract import validation
from batch.contract.fields import Field
from batch.errors import ContractError, InvalidAnswer, nearest

UNDECIDED = ...  # in a tuple of values: the table leaves the field open; None is a value, "none of these"
MAX_FACT_COMBINATIONS = 100_000


@dataclasses.dataclass(frozen=True)
class PolicyEntry:
    when: Mapping[str, Any]
    then: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Policy:
    """Facts with their legal values, and the table that decides the `scored` fields from them. Both may be
    empty.
    """

    facts: Mapping[str, tuple[Any, ...]]
    table: tuple[PolicyEntry, ...]
    scored: tuple[str, ...]  # names of the contract's scored fields, in its order

    @classmethod
    def from_dict(cls, raw: Any, fields: Mapping[str, Field]) -> "Policy":
        """Compile `[policy]` against the contract's fields by name; raises `ContractError`."""
        policy = validation.keys(raw, "[policy]", optional={"facts", "table"})
        listed = validation.table(policy.get("facts", {}), "[policy.facts]")
        facts = {
            name: tuple(validation.items(values, f"[policy.facts] {name}")) for name, values in listed.items()
        }
        for name, values in facts.items():
            validation.storable(values, f"[policy.facts] {name}")
        entries = validation.items(policy["table"], "[[policy.table]]") if "table" in policy else []
        table = tuple(_entry(entry, facts, fields) for entry in entries)
        return cls(facts, table, tuple(name for name, field in fields.items() if field.scored))

    def decide(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The table's answer to `facts`: for each field the first entry that holds and names it decides.

        Raises `InvalidAnswer` for an unknown fact or value.
        """
        for name, value in facts.items():
            if name not in self.facts:
                raise InvalidAnswer(f"unknown fact {name!r}{nearest(name, list(self.facts))}")
            if not validation.among(value, self.facts[name]):
                raise InvalidAnswer(f"fact {name!r} is {value!r}, not one of {list(self.facts[name])}")
        missing = [name for name in self.facts if name not in facts]
        if missing:
            raise InvalidAnswer(f"missing fact {missing[0]!r}")
        answer: dict[str, Any] = {}
        for entry in self.table:
            if all(facts[name] == value for name, value in entry.when.items()):
                for name, value in entry.then.items():
                    answer.setdefault(name, value)
        return answer

    @functools.cached_property
    def reachable(self) -> frozenset[tuple[Any, ...]] | None:
        """Every tuple of scored values that the table gives to some facts; None without a table."""
        if not self.table or math.prod(map(len, self.facts.values())) > MAX_FACT_COMBINATIONS:
            return None
        combinations = (
            dict(zip(self.facts, values, strict=True)) for values in itertools.product(*self.facts.values())
        )
        answers = map(self.decide, combinations)
        return frozenset(tuple(answer.get(name, UNDECIDED) for name in self.scored) for answer in answers)

    def mismatch(self, answer: Mapping[str, Any], facts: Mapping[str, Any] | None) -> str | None:
        """Why `answer` is not what the table gives (to `facts`, if known), or None when it is."""
        if facts is not None and self.table:
            for name, value in self.decide(facts).items():
                if answer[name] != value:
                    return f"{name} is {answer[name]!r}, but the policy table gives {value!r} for its facts"
        elif self.reachable is not None:
            values = tuple(answer[name] for name in self.scored)
            if not any(
                all(want is UNDECIDED or want == have for want, have in zip(r, values, strict=True))
                for r in self.reachable
            ):
                return f"no facts lead to {', '.join(map(repr, values))} in the policy table"
        return None


def _entry(entry: Any, facts: Mapping[str, tuple[Any, ...]], fields: Mapping[str, Field]) -> PolicyEntry:
    content = validation.keys(entry, "[[policy.table]]", required={"when", "then"})
    when, then = (validation.table(content[key], f"[[policy.table]] {key}") for key in ("when", "then"))
    for name, value in when.items():
        if name not in facts:
            raise ContractError(f"[[policy.table]] when: unknown fact {name!r}{nearest(name, list(facts))}")
        if not validation.among(value, facts[name]):
            raise ContractError(f"[[policy.table]] when: {name} is {value!r}, not one of {list(facts[name])}")
    for name, value in then.items():
        field = fields.get(name)
        if field is None or not field.scored or not field.legal(field.read(value)):
            raise ContractError(
                f"[[policy.table]] then: {name} = {value!r} is not a field with one of its legal values"
            )
    return PolicyEntry(when, {name: fields[name].read(value) for name, value in then.items()})
