"""The contract of a classification task, compiled: prompt, schema, grammar, parser, policy table,
fingerprint.

A contract is data (`data/contract.toml`; the same values as `contract.json` inside an adapter bundle). One
serialisation is used everywhere, compact JSON in the contract's key order: the training target, the grammar
that the engine decodes under and the parser accept byte for byte the same strings.
"""

import dataclasses
import functools
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from batch.contract import validation
from batch.contract.contrast import check_contrast
from batch.contract.field_types import check_fields, read_field
from batch.contract.fields import LIST, Field
from batch.contract.json_text import compact_json, pretty_json
from batch.contract.negation import Negation
from batch.contract.policy import UNDECIDED, Policy
from batch.contract.rules import Rule
from batch.errors import ContractError, InvalidAnswer

MAX_CHARS, MAX_TOKENS = 8000, 1024  # of a request, where `[input]` does not say

Answer = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Contract:
    """A compiled contract. Build it with :meth:`load` or :meth:`from_dict`; both raise `ContractError`."""

    name: str
    fields: tuple[Field, ...]
    system_prompt: str
    max_chars: int
    max_tokens: int
    policy: Policy
    rules: tuple[Rule, ...]
    enforce_rules: bool  # correct what breaks a rule, rather than only count it
    raw: Mapping[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def load(cls, path: str | Path) -> "Contract":
        """Read a `.toml` contract or a bundle's `contract.json`."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
            raw = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except FileNotFoundError:
            raise ContractError(f"no contract at {path}; give the path of a contract.toml") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ContractError(f"{path}: {error}; correct the file") from error
        try:
            return cls.from_dict(raw, in_bundle=path.suffix == ".json")
        except ContractError as error:
            raise ContractError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], in_bundle: bool = False) -> "Contract":
        known = {"input", "policy", "rules", "enforce_rules", "contrast", "negation"}
        validation.keys(raw, "contract", required={"name", "prompt", "fields"}, optional=known)
        bounds = validation.keys(raw.get("input", {}), "[input]", optional={"max_chars", "max_tokens"})
        prompt = validation.keys(raw["prompt"], "[prompt]", required={"system"})
        fields = tuple(read_field(entry) for entry in validation.items(raw["fields"], "[[fields]]"))
        check_fields(fields)
        by_name = {field.name: field for field in fields}
        negation = Negation.from_dict(raw.get("negation", {}))
        rules = tuple(
            Rule.from_dict(entry, by_name, negation)
            for entry in (validation.items(raw["rules"], "[[rules]]") if "rules" in raw else ())
        )
        if repeated := [
            rule.name for i, rule in enumerate(rules) if rule.name in {earlier.name for earlier in rules[:i]}
        ]:
            raise ContractError(f"rule {repeated[0]!r} is duplicated; violations are counted by name")
        contract = cls(
            name=validation.text(raw["name"], "name"),
            fields=fields,
            system_prompt=_system_prompt(validation.text(prompt["system"], "[prompt] system"), fields),
            max_chars=validation.positive(bounds.get("max_chars", MAX_CHARS), "[input] max_chars"),
            max_tokens=validation.positive(bounds.get("max_tokens", MAX_TOKENS), "[input] max_tokens"),
            policy=Policy.from_dict(raw.get("policy", {}), by_name),
            rules=rules,
            enforce_rules=validation.flag(raw.get("enforce_rules", False), "enforce_rules"),
            raw=raw,
        )
        for key, value in raw.items():
            validation.storable(value, f"[{key}]" if isinstance(value, dict) else key)
        if not in_bundle:  # which serves without it
            check_contrast(raw.get("contrast", {}), contract.policy.facts)
        return contract

    def to_json(self) -> str:
        """The snapshot that a bundle carries; :meth:`load` reads it back to an equal contract."""
        return pretty_json(self.raw).decode()

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the contract's values; comments and layout of the file do not count."""
        return hashlib.sha256(compact_json(self.raw).encode()).hexdigest()

    @functools.cached_property
    def scored_fields(self) -> tuple[Field, ...]:
        return tuple(field for field in self.fields if field.scored)

    @functools.cached_property
    def stand_ins(self) -> Mapping[str, str]:
        """A legal text for each text field, for an answer that has none."""
        return {field.name: field.stand_in for field in self.fields if not field.scored}

    @functools.cached_property
    def regex(self) -> str:
        """Regular expression of exactly the legal answers, with each value as the group `f<index>`."""
        members = (f'"{f.name}":(?P<f{i}>{f.pattern})' for i, f in enumerate(self.fields))
        return r"\{" + ",".join(members) + r"\}"

    @property
    def grammar(self) -> str:
        """The same expression in the dialect of guided decoding, where every group is plain."""
        return re.sub(r"\(\?(?::|P<f\d+>)", "(", self.regex)

    @functools.cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.regex)

    @functools.cached_property
    def max_answer_bytes(self) -> int:
        """Size of the longest legal answer. A byte-level tokenizer's tokens hold at least one byte each, so
        this also bounds the answer's tokens, and `max_answer_bytes + 1` (the end-of-turn token) is a provable
        `max_tokens`."""
        return 1 + sum(len(compact_json(f.name).encode()) + 2 + f.max_bytes for f in self.fields)

    def read(self, values: Mapping[str, Any]) -> Answer:
        """An answer out of a table's columns or a JSON object, as :meth:`parse` gives it; other keys are left
        out."""
        return {field.name: field.read(values[field.name]) for field in self.fields if field.name in values}

    def serialise(self, answer: Mapping[str, Any]) -> str:
        """The one serialisation of an answer: compact JSON in contract order. Extra keys are ignored.

        Raises `InvalidAnswer` for a missing key or an illegal value.
        """
        missing = [field.name for field in self.fields if field.name not in answer]
        if missing:
            raise InvalidAnswer(f"missing key {missing[0]!r}")
        text = compact_json({field.name: answer[field.name] for field in self.fields})
        if not self._compiled.fullmatch(text):
            raise InvalidAnswer(self._why_illegal(answer))
        return text

    def parse(self, text: str) -> tuple[Answer, dict[str, tuple[int, int]]]:
        """An answer's values, and for each scored field the span ``(start, end)`` of its JSON text in UTF-8
        bytes.

        The span includes a label's closing quote: that is where "app" is told from "app and portal"; and what
        follows a number that may begin another. Accepts exactly the strings that :meth:`serialise` makes;
        raises `InvalidAnswer` for any other.
        """
        match = self._compiled.fullmatch(text)
        if match is None:
            raise InvalidAnswer("the answer is not the contract's compact JSON")
        answer: Answer = {}
        spans: dict[str, tuple[int, int]] = {}
        for index, field in enumerate(self.fields):
            start, end = match.span(index + 1)
            answer[field.name] = field.parse(text[start:end])
            if field.scored:
                end += field.told_by_next
                if not text.isascii():
                    start, end = len(text[:start].encode()), len(text[:end].encode())
                spans[field.name] = (start, end)
        return answer, spans

    def parts(self, text: str) -> dict[str, list[tuple[int, int]]]:
        """For each field that is a set of labels, the span of each label in a legal answer, as in
        :meth:`parse`."""
        match = self._compiled.fullmatch(text)
        found: dict[str, list[tuple[int, int]]] = {}
        for index, field in enumerate(self.fields):
            if match and field.arrow == LIST:
                at = match.start(index + 1)
                found[field.name] = [
                    (len(text[: at + start].encode()), len(text[: at + end].encode()))
                    for start, end in field.parts(match[index + 1])
                ]
        return found

    def violations(self, answer: Mapping[str, Any], request: str) -> list[str]:
        """Names of the contract's rules that `answer` to `request` breaks, in contract order."""
        return [rule.name for rule in self.rules_for(answer) if not rule.allows(answer, request)]

    def rules_for(self, answer: Mapping[str, Any]) -> tuple[Rule, ...]:
        """The rules that speak of answers like this one, whatever the request."""
        return tuple(rule for rule in self.rules if rule.applies(answer))

    @functools.cached_property
    def enforced_fields(self) -> tuple[Field, ...]:
        """The fields that an enforced rule may correct; empty where rules are only counted."""
        corrected = {
            name for rule in self.rules if self.enforce_rules and rule.corrects for name in rule.then
        }
        return tuple(field for field in self.fields if field.name in corrected)

    def enforce(
        self, answer: Answer, violated: Sequence[str], denied: Sequence[str] = ()
    ) -> tuple[Answer, tuple[str, ...]]:
        """The answer as the enforced rules want it, and the names of those that changed it.

        `violated` are the rules that `answer` breaks (:meth:`violations`), `denied` those of them that a
        negation alone makes it break: they correct nothing, a person decides. Rules apply in contract order,
        each at most once; what an earlier one corrected may make a later one apply that asks for no mention.
        """
        if not self.enforce_rules:
            return answer, ()
        corrected, applied = dict(answer), []
        for rule in self.rules:
            if rule.name in denied:
                continue
            broken = rule.name in violated if rule.mentions else not rule.allows(corrected, "")
            if rule.corrects and rule.applies(corrected) and broken:
                corrected.update(rule.then)
                applied.append(rule.name)
        return corrected, tuple(applied)

    @property
    def facts(self) -> Mapping[str, tuple[Any, ...]]:
        """What a labeller reads off a request: each fact's name and legal values."""
        return self.policy.facts

    def decide(self, facts: Mapping[str, Any]) -> Answer:
        """The policy table's answer to `facts`; see :meth:`Policy.decide`."""
        return self.policy.decide(facts)

    def policy_mismatch(self, answer: Mapping[str, Any], facts: Mapping[str, Any] | None) -> str | None:
        """Why `answer` is not what the policy table gives; see :meth:`Policy.mismatch`."""
        return self.policy.mismatch(answer, facts)

    def sample_answers(self) -> list[Answer]:
        """A few dozen legal answers that show every value: for canaries, the replay engine and tests."""
        count = max(len(field.samples) for field in self.scored_fields)
        decided = self._decided(sorted(self.policy.reachable or (), key=repr))
        tuples = decided or [
            tuple(field.samples[i % len(field.samples)] for field in self.scored_fields) for i in range(count)
        ]
        texts = {field.name: field.samples[0] for field in self.fields if not field.scored}
        scored = [field.name for field in self.scored_fields]
        return [{**dict(zip(scored, values, strict=True)), **texts} for values in tuples]

    def _decided(self, tuples: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The tuples of scored values, with a sample for each that the policy table leaves open: the first
        tuples that do so show all samples, later ones go on in turn.
        """
        samples, shown = [field.samples for field in self.scored_fields], [0] * len(self.scored_fields)
        made: list[tuple[Any, ...]] = []
        for values in tuples:
            left = [i for i, value in enumerate(values) if value is UNDECIDED]
            more = True
            while more:
                filled = {i: samples[i][shown[i] % len(samples[i])] for i in left}
                made.append(tuple(filled.get(i, value) for i, value in enumerate(values)))
                for i in left:
                    shown[i] += 1
                more = any(shown[i] < len(samples[i]) for i in left)
        return made

    def _why_illegal(self, answer: Mapping[str, Any]) -> str:
        wrong = (field for field in self.fields if not field.legal(answer[field.name]))
        return next((field.why_illegal(answer[field.name]) for field in wrong), "the answer is not legal")


def _system_prompt(template: str, fields: tuple[Field, ...]) -> str:
    if "{fields}" not in template:
        raise ContractError("[prompt] system must hold {fields}, where the labels and their meanings go")
    blocks = []
    for field in fields:
        lines = [f"{field.name}: {field.meaning} ({field.kind})"]
        lines += [f"- {value}: {meaning}" for value, meaning in field.listed.items()]
        blocks.append("\n".join(lines))
    return template.replace("{fields}", "\n".join(blocks)).strip()
