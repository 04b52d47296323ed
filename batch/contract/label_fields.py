"""Fields whose values are made of listed labels: one of them, one of some numbers, any number of them."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from batch.contract import validation
from batch.contract.fields import LIST, NONE, Field
from batch.contract.json_text import compact_json
from batch.errors import ContractError, nearest


@dataclasses.dataclass(frozen=True)
class Label(Field):
    """One of a list of labels, each with its meaning for the prompt; null where the field is `optional`."""

    type = "label"
    arrow = "string"

    labels: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    optional: bool = False

    @property
    def quoted(self) -> bool:  # type: ignore[override]
        return not self.optional

    @functools.cached_property
    def values(self) -> tuple[Any, ...]:
        return (*self.labels, *([None] if self.optional else []))

    def read(self, value: Any) -> Any:
        return None if self.optional and value == NONE else value

    @functools.cached_property
    def pattern(self) -> str:
        one_of = '"(?:' + "|".join(_literal(label) for label in self.labels) + ')"'
        return f"(?:{one_of}|null)" if self.optional else one_of

    def parse(self, text: str) -> Any:
        return text[1:-1] if text.startswith('"') else None

    @property
    def kind(self) -> str:
        return "one of, or null" if self.optional else "one of"

    @property
    def meanings(self) -> Mapping[Any, str]:
        return {**self.labels, **({None: NONE} if self.optional else {})}

    def why_illegal(self, value: Any) -> str:
        known = list(self.labels)
        return (
            f"{self.name} is {value!r}, not one of {known}{' or null' * self.optional}"
            f"{nearest(str(value), [str(label) for label in known])}"
        )

    @classmethod
    def own(cls, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        labels = validation.table(table.get("labels", {}), f"{where}: labels")
        for label, meaning in labels.items():
            validation.text(meaning, f"{where}: the meaning of {label!r}")
        optional = validation.flag(table.get("optional", False), f"{where}: optional")
        return {
            "labels": {cls.label(label, where): text for label, text in labels.items()},
            "optional": optional,
        }

    @classmethod
    def label(cls, name: str, where: str) -> Any:
        """A label as its table's key spells it → as an answer has it."""
        if not name or re.search(r'["\\\x00-\x1f\x7f-\x9f\ud800-\udfff]', name):
            raise ContractError(
                f"{where}: label {name!r} is empty or holds a quote, backslash or control character"
            )
        return name

    def check(self, where: str) -> None:
        super().check(where)
        if len(self.labels) < 2:
            raise ContractError(f"{where}: needs at least two labels under [fields.labels]")
        if self.optional and NONE in self.labels:
            raise ContractError(f"{where}: {NONE!r} stands for null in an optional field; rename the label")


@dataclasses.dataclass(frozen=True)
class Integer(Label):
    """One of a list of whole numbers, each with its meaning; null where the field is `optional`."""

    type = "integer"
    arrow = "int64"

    @property
    def quoted(self) -> bool:  # type: ignore[override]
        return False

    @functools.cached_property
    def pattern(self) -> str:
        return "(?:" + "|".join(_literal(compact_json(value)) for value in self.values) + ")"

    @functools.cached_property
    def told_by_next(self) -> bool:  # type: ignore[override]
        texts = sorted(str(number) for number in self.labels)  # one that begins others stands in front of one
        return any(b.startswith(a) for a, b in itertools.pairwise(texts))

    def parse(self, text: str) -> Any:
        return json.loads(text)

    @classmethod
    def label(cls, name: str, where: str) -> Any:
        if not re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name):
            raise ContractError(f"{where}: label {name!r} of an integer field must be a whole number")
        return int(name)


@dataclasses.dataclass(frozen=True)
class Labels(Label):
    """A set of labels: a tuple in contract order, each at most once; empty where the field is `optional`."""

    type = "labels"
    arrow = LIST
    closer = "]"

    @property
    def quoted(self) -> bool:  # type: ignore[override]
        return False

    @functools.cached_property
    def values(self) -> tuple[Any, ...]:
        return tuple(self.labels)

    def chosen(self, value: Any) -> tuple[Any, ...]:
        return tuple(value)

    @property
    def groups(self) -> tuple[Any, ...]:
        return tuple(range(len(self.labels) + 1))

    @property
    def samples(self) -> tuple[Any, ...]:
        empty = [()] if self.optional else []
        return (*((label,) for label in self.labels), tuple(self.labels)[:3], *empty)

    def legal(self, value: Any) -> bool:
        if not isinstance(value, list | tuple) or not (value or self.optional):
            return False
        return list(value) == [label for label in self.labels if validation.among(label, value)]

    def read(self, value: Any) -> Any:
        return () if value == NONE and self.optional else tuple(value) if isinstance(value, list) else value

    @functools.cached_property
    def pattern(self) -> str:
        some = _some([f'"{_literal(label)}"' for label in self.labels])
        return rf"\[(?:{some})?\]" if self.optional else rf"\[(?:{some})\]"

    @property
    def max_bytes(self) -> int:
        return len(compact_json(self.values).encode())

    def parse(self, text: str) -> tuple[str, ...]:
        return tuple(json.loads(text))

    def parts(self, text: str) -> list[tuple[int, int]]:
        """From behind the label before to behind its closing quote; short of it where that tells nothing."""
        found, start = [], 1
        for label in self.parse(text):
            end = text.index(f'"{label}"', start) + len(label) + 2
            begins_another = any(other != label and other.startswith(label) for other in self.labels)
            found.append((start, end - (not begins_another)))
            start = end
        return found

    @property
    def kind(self) -> str:
        return "a list, in this order, of " + ("any of" if self.optional else "at least one of")

    @property
    def meanings(self) -> Mapping[Any, str]:
        return self.labels

    @property
    def listed(self) -> Mapping[str, str]:
        return {**super().listed, **({"[]": NONE} if self.optional else {})}

    def why_illegal(self, value: Any) -> str:
        return f"{self.name} is {value!r}, not a list of some of {list(self.labels)}, in this order"


def _some(texts: Sequence[str]) -> str:
    """Expression of one or more of `texts`, in order, with commas between. Its size is n log n: it is one of
    the first half and any of the second, or one of the second."""
    if len(texts) == 1:
        return texts[0]
    first, second = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    rest = "".join(f"(?:,{text})?" for text in second)
    return f"(?:{_some(first)}{rest}|{_some(second)})"


def _literal(text: str) -> str:
    """`text` as a regular expression that both `re` and the guided decoder read: only metacharacters are
    escaped.
    """
    return re.sub(r"([][\\.^$*+?{}()|/-])", r"\\\1", text)
