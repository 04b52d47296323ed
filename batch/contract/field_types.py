"""The types of fields, a class each; see `fields.py` for what they have in common."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from batch.contract import validation
from batch.contract.fields import Field
from batch.contract.json_text import compact_json
from batch.contract.label_fields import Integer, Label, Labels
from batch.errors import ContractError

# What outputs and labelled rows have beside a contract's fields.
RESERVED = frozenset(
    {
        *("id", "request", "facts", "status", "score", "error", "error_code", "adapter", "triage"),
        *("rules_applied", "answered_by"),
        # what labelled rows and reviewers' decisions add to their labels and are read for
        *("decision", "reviewer", "reviewed_at", "suggested", "audit", "probe"),
    }
)
ENDINGS = ("_score", "_label_scores", "_second", "_second_score", "_model")  # of a field's other columns
ASCII_TEXT = r"[ -!#-\[\]-~]"  # printable ASCII without the quote and the backslash, so JSON never escapes it
LONGEST_TEXT = 100_000  # characters
SAMPLE = "The request names these facts. "
ANY_TEXT = r'[^"\\\x00-\x1f\x7f-\x9f\ud800-\udfff]'


@dataclasses.dataclass(frozen=True)
class Boolean(Field):
    type = "boolean"
    arrow = "bool"

    @property
    def values(self) -> tuple[Any, ...]:
        return (True, False)

    @property
    def pattern(self) -> str:
        return "(?:true|false)"

    @property
    def kind(self) -> str:
        return "true or false"


@dataclasses.dataclass(frozen=True)
class Text(Field):
    """Free text of `min_chars` to `max_chars` Unicode characters that JSON need not escape."""

    type = "text"
    arrow = "string"
    scored = False
    quoted = True
    closer = '"'

    min_chars: int = 1
    max_chars: int = 160
    ascii: bool = True

    @property
    def samples(self) -> tuple[str, ...]:
        length = max(self.min_chars, min(self.max_chars, 80))
        return ((SAMPLE * (length // len(SAMPLE) + 1))[:length],)

    @property
    def stand_in(self) -> str:
        return "x" * self.min_chars

    @property
    def character(self) -> str:
        return ASCII_TEXT if self.ascii else ANY_TEXT

    @property
    def pattern(self) -> str:
        return f'"{self.character}{{{self.min_chars},{self.max_chars}}}"'

    @property
    def max_bytes(self) -> int:
        return 2 + self.max_chars * (1 if self.ascii else 4)

    def legal(self, value: Any) -> bool:
        return isinstance(value, str) and bool(re.fullmatch(self.pattern, compact_json(value)))

    def parse(self, text: str) -> str:
        return text[1:-1]

    @property
    def kind(self) -> str:
        return f"text, at most {self.max_chars} characters"

    def why_illegal(self, value: Any) -> str:
        kind = "printable ASCII " if self.ascii else ""
        return (
            f"{self.name} must be {self.min_chars} to {self.max_chars} {kind}characters "
            f"without quotes and backslashes, not {value!r}"
        )

    @classmethod
    def own(cls, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        for bound in {"min_chars", "max_chars"} & set(table):
            validation.positive(table[bound], f"{where}: {bound}")
        validation.flag(table.get("ascii", True), f"{where}: ascii")
        return {key: table[key] for key in ("min_chars", "max_chars", "ascii") if key in table}

    def check(self, where: str) -> None:
        super().check(where)
        if self.min_chars > self.max_chars:
            raise ContractError(f"{where}: needs 0 < min_chars <= max_chars")
        if self.max_chars > LONGEST_TEXT:
            raise ContractError(f"{where}: max_chars must be at most {LONGEST_TEXT}, not {self.max_chars}")


TYPES: Mapping[str, type[Field]] = {each.type: each for each in (Label, Boolean, Text, Integer, Labels)}


def read_field(entry: Any) -> Field:
    """Compile one `[[fields]]` entry; raises `ContractError`."""
    keys = {field.name for each in TYPES.values() for field in dataclasses.fields(each)}
    table = validation.keys(entry, "[[fields]]", required={"name", "type"}, optional=keys)
    where = f"field {validation.text(table['name'], '[[fields]] name')!r}"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", table["name"]):
        raise ContractError(f"{where}: a name is letters, digits and underscores (it names output columns)")
    if not isinstance(table["type"], str) or table["type"] not in TYPES:
        raise ContractError(f"{where}: type must be one of {', '.join(TYPES)}, not {table['type']!r}")
    kind = TYPES[table["type"]]
    for key in set(table) - {field.name for field in dataclasses.fields(kind)} - {"type"}:
        raise ContractError(f"{where}: a {kind.type} field has no {key}")
    field = kind(
        name=table["name"],
        meaning=validation.text(table.get("meaning", ""), f"{where}: meaning"),
        **kind.own(table, where),
    )
    if "escalates" in table:
        given = validation.items(table["escalates"], f"{where}: escalates")
        field = dataclasses.replace(field, escalates=tuple(map(field.read, given)))
    field.check(where)
    return field


def check_fields(fields: Sequence[Field]) -> None:
    names = [field.name.lower() for field in fields]  # case tells columns apart for few who read them
    if not fields or len(set(names)) < len(names):
        raise ContractError("a contract needs at least one field, and each name once")
    made = {f"{name}{ending}": name for name in names for ending in ENDINGS}
    for name in names:
        if name in RESERVED or name in made:
            whose = f"of field {made[name]!r}" if name in made else "of every output or labelled row"
            raise ContractError(f"field {name!r}: that is a column {whose}; choose another name")
    if not any(field.scored for field in fields):
        raise ContractError("a contract needs at least one field of labels, integers or booleans")
