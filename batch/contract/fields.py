"""One key of the answer: its legal values, their JSON text, what the prompt says of them.

    label     one of a list                          "low"
    integer   one of a list of whole numbers         3
    labels    any number of a list, in its order     ["a","c"]
    boolean   true or false                          true
    text      free text within bounds

`field_types.py` and `label_fields.py` have a class for each. All but a text are *scored*: their values are
made of finitely many choices, so each has a probability. A label or an integer that is `optional` may be
null, `labels` that are may be empty: none of these.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from batch.contract import validation
from batch.contract.json_text import compact_json
from batch.errors import ContractError

LIST = "list<string>"  # the Arrow type of a set of labels
NONE = "none of these"  # how a contract names null, which TOML does not have, and reports show it


@dataclasses.dataclass(frozen=True)
class Field:
    """One key of the answer. Its values are hashable: a set of labels is a tuple."""

    type: ClassVar[str]
    arrow: ClassVar[
        str
    ]  # the output column's type, by Arrow's name: storage has pyarrow, a contract does not
    scored: ClassVar[bool] = True  # whether the value has a probability
    quoted: ClassVar[bool] = False  # whether every value's JSON begins with a quote

    closer: ClassVar[str] = ""  # what ends a value that has too many forms to follow each: a text, a set

    name: str
    meaning: str = ""
    escalates: tuple[Any, ...] = ()  # choices that must not be let through, from the least to the most grave

    @functools.cached_property
    def values(self) -> tuple[Any, ...]:
        """The choices, in contract order; empty for a text. A set of labels is legal too, made of them."""
        return ()

    def chosen(self, value: Any) -> tuple[Any, ...]:
        """The choices that a legal value holds."""
        return (value,)

    @property
    def ranked(self) -> bool:
        """Whether one of the `values` comes second where another is chosen."""
        return self.scored and self.arrow != LIST

    @property
    def samples(self) -> tuple[Any, ...]:
        """Legal values that show every choice."""
        return self.values

    @property
    def stand_in(self) -> Any:
        """A short legal value, where one is missing."""
        return self.samples[0]

    def legal(self, value: Any) -> bool:
        return validation.among(value, self.values)

    def read(self, value: Any) -> Any:
        """A value or a choice as the contract's tables spell it, as an answer has it."""
        return value

    def matches(self, value: Any, wanted: Any) -> bool:
        """Whether a rule that asks for `wanted` speaks of `value`: it holds that choice, or is that value."""
        return value == wanted or wanted in self.chosen(value)

    def within(self, value: Any, allowed: tuple[Any, ...]) -> bool:
        """Whether `value` is allowed, or holds only choices that are."""
        return value in allowed or all(choice in allowed for choice in self.chosen(value))

    @functools.cached_property
    def pattern(self) -> str:
        """Regular expression of the value's JSON text."""
        raise NotImplementedError

    @property
    def max_bytes(self) -> int:
        """Size in UTF-8 bytes of the longest value's JSON text."""
        return max(len(compact_json(value).encode()) for value in self.values)

    @property
    def told_by_next(self) -> bool:
        """Whether only the byte behind a value tells it from another: 1 from 10."""
        return False

    def parse(self, text: str) -> Any:
        """The value of a legal JSON text."""
        return json.loads(text)

    def parts(self, text: str) -> list[tuple[int, int]]:
        """Where the JSON text of a set of labels has each of them, as ``(start, end)`` in characters."""
        return []

    @property
    def kind(self) -> str:
        """What the prompt says of the type."""
        raise NotImplementedError

    @property
    def meanings(self) -> Mapping[Any, str]:
        """Of the choices, where the contract gives them."""
        return {}

    @property
    def listed(self) -> Mapping[str, str]:
        """What the prompt lists: JSON texts with their meanings."""
        return {compact_json(value): meaning for value, meaning in self.meanings.items()}

    def why_illegal(self, value: Any) -> str:
        """What is wrong with a value that is not legal."""
        return f"{self.name} is {value!r}, not {self.kind}"

    @property
    def groups(self) -> tuple[Any, ...]:
        """What calibration tells apart, see :func:`batch.adapter.calibration.group`."""
        return self.values

    def under_escalates(self, gold: Any, answered: Any) -> bool:
        """Whether `answered` lets through what is `gold`: it ranks lower in `escalates`, or is not in it at
        all.
        """
        return self.grave(gold) and self._rank(answered) < self._rank(gold)

    def grave(self, value: Any) -> bool:
        """Whether `value` must not be let through."""
        return self._rank(value) >= 0

    def _rank(self, value: Any) -> int:
        places = [place for place, choice in enumerate(self.escalates) if choice in self.chosen(value)]
        return max(places, default=-1)

    @classmethod
    def own(cls, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The values of the keys that only this type has; raises `ContractError`."""
        return {}

    def check(self, where: str) -> None:
        for value in self.escalates:
            if not validation.among(value, self.values) or self.escalates.count(value) > 1:
                raise ContractError(
                    f"{where}: escalates lists legal values, each once; {value!r} is not one, or "
                    "is duplicated"
                )


class HasFields(Protocol):
    """A contract, or the fields of several as one set of output columns."""

    @property
    def fields(self) -> tuple[Field, ...]: ...
    @property
    def scored_fields(self) -> tuple[Field, ...]: ...
    @property
    def enforced_fields(self) -> tuple[Field, ...]: ...
    @property
    def enforce_rules(self) -> bool: ...


def as_text(value: Any) -> str:
    """A value in a report: a label as it is, null as what it means, anything else as JSON has it."""
    return NONE if value is None else value if isinstance(value, str) else compact_json(value)
