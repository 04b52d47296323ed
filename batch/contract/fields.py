"""One key of the answer: its type, its legal values, its JSON text as a regular expression."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from batch.contract import validation
from batch.errors import ContractError

# What outputs and labelled rows have beside a contract's fields.
RESERVED = frozenset(
    ("id", "request", "facts", "status", "score", "error", "error_code", "adapter", "triage", "rules_applied")
)
ASCII_TEXT = r"[ -!#-\[\]-~]"  # printable ASCII without the quote and the backslash, so JSON never escapes it
ANY_TEXT = r'[^"\\\x00-\x1f\x7f-\x9f\ud800-\udfff]'


@dataclasses.dataclass(frozen=True)
class Field:
    """One key of the answer: a label (one of a list), a boolean, or a bounded free text."""

    name: str
    type: Literal["label", "boolean", "text"]
    meaning: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    min_chars: int = 1
    max_chars: int = 160
    ascii: bool = True
    escalates: tuple[Any, ...] = ()  # values that must not be let through, from the least to the most grave

    @property
    def scored(self) -> bool:
        """Whether the value is one of a finite list and so has a probability."""
        return self.type != "text"

    @functools.cached_property
    def values(self) -> tuple[Any, ...]:
        """The legal values in contract order; empty for a text field."""
        return {"label": tuple(self.labels), "boolean": (True, False), "text": ()}[self.type]

    def under_escalates(self, gold: Any, answered: Any) -> bool:
        """Whether `answered` lets through what is `gold`: it ranks lower in `escalates`, or is not in it at
        all.
        """
        rank = {value: place for place, value in enumerate(self.escalates)}
        return gold in rank and rank.get(answered, -1) < rank[gold]

    @functools.cached_property
    def pattern(self) -> str:
        """Regular expression of the value's JSON text."""
        if self.type == "boolean":
            return "(?:true|false)"
        if self.type == "label":
            return '"(?:' + "|".join(_literal(label) for label in self.labels) + ')"'
        return f'"{self.text_pattern}"'

    @property
    def text_pattern(self) -> str:
        return f"{ASCII_TEXT if self.ascii else ANY_TEXT}{{{self.min_chars},{self.max_chars}}}"

    @property
    def max_bytes(self) -> int:
        """Size in UTF-8 bytes of the longest value's JSON text."""
        if self.type == "text":
            return 2 + self.max_chars * (1 if self.ascii else 4)
        return max(len(compact_json(value).encode()) for value in self.values)

    def schema(self) -> dict[str, Any]:
        if self.type == "label":
            return {"type": "string", "enum": list(self.labels)}
        if self.type == "boolean":
            return {"type": "boolean"}
        # A pattern, not maxLength: xgrammar compiles length bounds far more slowly at a large vocabulary.
        return {"type": "string", "pattern": f"^{self.text_pattern}$"}


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


def _literal(text: str) -> str:
    """`text` as a regular expression that both `re` and the guided decoder read: only metacharacters are
    escaped.
    """
    return re.sub(r"([][\\.^$*+?{}()|/-])", r"\\\1", text)


def compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def read_field(entry: Any) -> Field:
    allowed = {field.name for field in dataclasses.fields(Field)}
    table = validation.keys(entry, "[[fields]]", required={"name", "type"}, optional=allowed)
    where = f"field {validation.text(table['name'], '[[fields]] name')!r}"
    validation.text(table.get("meaning", ""), f"{where}: meaning")
    for label, meaning in validation.table(table.get("labels", {}), f"{where}: labels").items():
        validation.text(meaning, f"{where}: the meaning of {label!r}")
    for bound in {"min_chars", "max_chars"} & set(table):
        validation.positive(table[bound], f"{where}: {bound}")
    if not isinstance(table.get("ascii", True), bool):
        raise ContractError(f"{where}: ascii must be true or false, not {table['ascii']!r}")
    escalates = (
        tuple(validation.items(table["escalates"], f"{where}: escalates")) if "escalates" in table else ()
    )
    return Field(**{**table, "escalates": escalates})


def check_fields(fields: tuple[Field, ...]) -> None:
    names = [field.name.lower() for field in fields]  # case tells columns apart for few who read them
    if not fields or len(set(names)) < len(names):
        raise ContractError("a contract needs at least one field, and each name once")
    made = {f"{name}{ending}": name for name in names for ending in ("_score", "_model")}
    for name in names:
        if name in RESERVED or name in made:
            whose = f"of field {made[name]!r}" if name in made else "of every output or labelled row"
            raise ContractError(f"field {name!r}: that is a column {whose}; choose another name")
    if not any(field.scored for field in fields):
        raise ContractError("a contract needs at least one label or boolean field")
    for field in fields:
        where = f"field {field.name!r}"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", field.name):
            raise ContractError(
                f"{where}: a name is letters, digits and underscores (it names output columns)"
            )
        if field.type not in ("label", "boolean", "text"):
            raise ContractError(f"{where}: type must be label, boolean or text, not {field.type!r}")
        for value in field.escalates:
            if not validation.among(value, field.values) or field.escalates.count(value) > 1:
                raise ContractError(
                    f"{where}: escalates lists legal values, each once; {value!r} is none or is there twice"
                )
        if field.type == "label":
            if len(field.labels) < 2:
                raise ContractError(f"{where}: needs at least two labels under [fields.labels]")
            for label in field.labels:
                if not label or re.search(r'["\\\x00-\x1f\x7f-\x9f]', label):
                    raise ContractError(
                        f"{where}: label {label!r} is empty or holds a quote, backslash or control character"
                    )
        elif field.labels:
            raise ContractError(f"{where}: only a label field has labels")
        if field.type == "text" and not 0 < field.min_chars <= field.max_chars:
            raise ContractError(f"{where}: needs 0 < min_chars <= max_chars")
