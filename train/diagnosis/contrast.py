"""Contrast probes: requests that differ in one thing only, generated from a contract's `mentions` rules.

A rule such as "an integration platform needs its system in the text" says which words have to be there for a
label. A frame is a request with a `{system}` in it and the facts that hold whatever stands there. It is asked
with each of the words (named), with generic words and competitors' names, and with the words negated: the
label is right for the first kind only. The frames are the contract's `[contrast]`; without any, labelled
requests that hold a word are cut open.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batch.contract.contract import Contract
from batch.contract.contrast import SLOT, check_contrast
from batch.contract.rules import Rule
from train.dataset import Row

GENERIC = ("our system", "the usual tool")
NEGATIONS = (", no {word} involved", ", without {word}")
MAX_FRAMES = 20  # cut from labelled rows


@dataclasses.dataclass(frozen=True)
class Probe:
    """`kind` is named, generic, competitor or negated; `facts` and `answer` as far as the contract's policy
    knows.
    """

    request: str
    kind: str
    facts: Mapping[str, Any]
    answer: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Frame:
    text: str  # with one `{system}`
    facts: Mapping[str, Any]


def mention_rules(contract: Contract) -> list[Rule]:
    """The rules that want words in the text for one value of one scored field: those whose bias can be
    measured.
    """
    return [rule for rule in contract.rules if rule.mentions and len(rule.when) == 1]


def label_of(rule: Rule) -> tuple[str, Any]:
    """The field and the value that a mention rule is about."""
    ((field, value),) = rule.when.items()
    return field, value


def probes(contract: Contract, rows: Sequence[Row] = ()) -> list[Probe]:
    """Every frame with every filling. Empty for a contract without mention rules. Raises `ContractError`."""
    rules = mention_rules(contract)
    if not rules:
        return []
    raw = contract.raw.get("contrast", {})
    check_contrast(raw, contract.policy.facts)  # a bundle's is not checked when it loads
    generic, competitors = raw.get("generic", GENERIC), raw.get("competitors", ())
    frames = (
        [Frame(entry["text"], entry.get("facts", {})) for entry in raw["frames"]]
        if "frames" in raw
        else list(_cut(rows, rules))
    )
    found = []
    for frame in frames:
        for rule in rules:
            found += [
                _probe(frame.text.replace(SLOT, word), "named", frame, contract, rule)
                for word in rule.mentions
            ]
        for kind, words in (("generic", generic), ("competitor", competitors)):
            found += [_probe(frame.text.replace(SLOT, word), kind, frame, contract) for word in words]
        for denied, negation in itertools.product(rules, NEGATIONS):
            text = (
                frame.text.replace(SLOT, generic[0]).rstrip(".")
                + negation.format(word=denied.mentions[0])
                + "."
            )
            found.append(_probe(text, "negated", frame, contract))
    return list({probe.request: probe for probe in found}.values())


def _cut(rows: Sequence[Row], rules: Sequence[Rule]) -> Iterator[Frame]:
    """Frames from labelled requests that hold a word once: whatever it is, the rest of the request stays."""
    found = []
    for row, rule in itertools.product(rows, rules):
        for word in rule.mentions:
            if row.request.count(word) == 1 and rule.mentioned(row.request) and rule.applies(row.answer):
                found.append(Frame(row.request.replace(word, SLOT), {}))
                break
    yield from found[:MAX_FRAMES]


def _probe(text: str, kind: str, frame: Frame, contract: Contract, rule: Rule | None = None) -> Probe:
    return Probe(text, kind, *_decide(contract, frame.facts, rule))


def _decide(
    contract: Contract, facts: Mapping[str, Any], rule: Rule | None
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """All facts and the answer: the facts that a frame leaves open are those that make the named rule's label
    right, or no rule's. Where none do (a report over the system's data), the first for which the table has an
    answer.
    """
    if not contract.policy.table or not facts:
        return facts, None
    left = [name for name in contract.facts if name not in facts]
    options = [
        dict(zip(left, values, strict=True))
        for values in itertools.product(*(contract.facts[name] for name in left))
    ]
    decided = [({**facts, **option}, contract.decide({**facts, **option})) for option in options]
    for every, answer in decided:
        about = [
            each for each in mention_rules(contract) if label_of(each)[0] in answer and each.applies(answer)
        ]
        if (rule in about) if rule else not about:
            return every, answer
    return decided[0]
