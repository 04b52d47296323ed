"""Why an adapter answers what it answers: groups of misses, words that go with labels, and what a label
needs.

    misses           by field, gold, answer and facts, with how many training rows have those facts
    associations     words that training rows show with one label much more than with the others
    mention rules    P(label | none of its words in the text), on the dataset and on contrast probes, with the
    words that
                     go with the wrong answers
    proposals        which examples the training rows lack

Associations are not causes: a word that goes with a label may only keep company with the one that matters.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import polars as pl

from batch.contract.contract import Contract
from batch.contract.fields import as_text
from batch.contract.rules import Rule
from train.dataset import Row
from train.diagnosis.contrast import Probe, label_of, mention_rules
from train.evaluation.evaluate import Answered, Evaluation
from train.evaluation.statistics import Proportion, log_odds
from train.likeness import words

WORDS_SHOWN = 8
SURE = 1.0  # z-score from which an association is shown: small sets have no large ones
BOUND = 0.05  # share of unmentioned labels that is let pass: gates refuse more


@dataclasses.dataclass(frozen=True)
class AskedRow:
    """A request with what is known of it and what was answered."""

    source: str  # the dataset's name, or `contrast`
    kind: str  # a probe's kind, or a row's note
    request: str
    facts: Mapping[str, Any]
    gold: Mapping[str, Any] | None
    answer: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Rate:
    """P(label) where none of its rule's words is mentioned, under a condition."""

    source: str
    condition: str  # `any`, a kind, or a fact that holds
    unmentioned: Proportion


@dataclasses.dataclass(frozen=True)
class Bias:
    """What a mention rule's label depends on. `named` is recall: the label where it is gold and its word is
    there.
    """

    rule: str
    field: str
    label: str
    rates: Sequence[Rate]
    named: Mapping[str, Proportion]  # source → …
    drivers: Sequence[tuple[str, float]]  # word, z-score: goes with the label though nothing mentions it
    erased: Sequence[
        tuple[str, Proportion]
    ] = ()  # word, how often the label was gone without it (`train.diagnosis.occlusion`)

    def rate(self, source: str, condition: str = "any") -> Proportion:
        """The rate under a condition; of nothing where it was not asked."""
        return next(
            (r.unmentioned for r in self.rates if (r.source, r.condition) == (source, condition)),
            Proportion(0, 0),
        )


@dataclasses.dataclass(frozen=True)
class Association:
    field: str
    value: str
    word: str
    z: float
    with_value: int  # training rows that hold the word and have the value
    with_word: int  # training rows that hold the word


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    adapter: str
    dataset: str
    misses: Sequence[Mapping[str, Any]]  # field, gold, answered, facts, rows, trained
    associations: Sequence[Association]
    biases: Sequence[Bias]
    proposals: Sequence[str]

    def bias(self, rule: str) -> Bias | None:
        """That of the rule with this name; None where the adapter's contract has none."""
        return next((each for each in self.biases if each.rule == rule), None)

    def as_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        for bias, each in zip(self.biases, content["biases"], strict=True):
            each["rates"] = [
                {"source": r.source, "condition": r.condition, **r.unmentioned.as_json()} for r in bias.rates
            ]
            each["named"] = {source: proportion.as_json() for source, proportion in bias.named.items()}
            each["erased"] = [{"word": word, **proportion.as_json()} for word, proportion in bias.erased]
        return content


def asked_rows(source: str, rows: Sequence[Row], answers: Sequence[Answered]) -> list[AskedRow]:
    return [
        AskedRow(source, r.note or "", r.request, r.facts or {}, r.answer, a.answer)
        for r, a in zip(rows, answers, strict=True)
    ]


def asked_probes(probes: Sequence[Probe], answers: Sequence[Answered]) -> list[AskedRow]:
    return [
        AskedRow("contrast", p.kind, p.request, p.facts, p.answer, a.answer)
        for p, a in zip(probes, answers, strict=True)
    ]


def diagnose(
    evaluation: Evaluation,
    asked: Sequence[AskedRow],
    train: Sequence[Row],
    contract: Contract,
    erased: Mapping[str, Sequence[tuple[str, Proportion]]] = MappingProxyType({}),
) -> Diagnosis:
    """`asked` holds the evaluation's rows and the contrast probes; `train` what the adapter learnt from, or
    nothing; `erased` what `train.diagnosis.occlusion` found out of them."""
    biases = [
        dataclasses.replace(bias(rule, asked), erased=erased.get(rule.name, ()))
        for rule in mention_rules(contract)
    ]
    misses = _groups(evaluation, asked, train)
    proposals = [line for each in biases for line in _missing_mentions(each, asked, train, contract)]
    proposals += [_missing_facts(group) for group in misses if group["facts"] and group["rows"] > 1]
    return Diagnosis(
        evaluation.adapter, evaluation.dataset, misses, associations(train, contract), biases, proposals
    )


def bias(rule: Rule, asked: Sequence[AskedRow]) -> Bias:
    """How often the rule's label is answered where nothing mentions it, and where something does."""
    field, label = label_of(rule)
    rates, named = [], {}
    for source in dict.fromkeys(each.source for each in asked):
        own = [each for each in asked if each.source == source]
        absent = [each for each in own if not rule.mentioned(each.request)]
        conditions = {"any": absent}
        for kind in dict.fromkeys(each.kind for each in absent if each.kind):
            conditions[kind] = [each for each in absent if each.kind == kind]
        for fact in dict.fromkeys(
            name for each in absent for name, value in each.facts.items() if value is True
        ):
            conditions[fact] = [each for each in absent if each.facts.get(fact) is True]
        rates += [Rate(source, name, _answered(group, rule)) for name, group in conditions.items()]
        named[source] = _answered(
            [e for e in own if rule.mentioned(e.request) and e.gold and rule.applies(e.gold)], rule
        )
    wrong, right = Counter[str](), Counter[str]()
    for each in asked:
        if each.answer and not rule.mentioned(each.request):
            (wrong if rule.applies(each.answer) else right).update(set(words(each.request)))
    ranked = sorted(log_odds(wrong, right).items(), key=lambda item: -item[1])[:WORDS_SHOWN]
    return Bias(rule.name, field, label, rates, named, [(word, z) for word, z in ranked if z >= SURE])


def associations(train: Sequence[Row], contract: Contract) -> list[Association]:
    """Words of the training rows that go with one value of a field, the surest first
    (`train.evaluation.statistics.log_odds`).
    """
    found = []
    seen = [set(words(row.request)) for row in train]
    everywhere = Counter(word for own in seen for word in own)
    for field in contract.scored_fields:
        for value in field.values:
            inside = Counter(
                word
                for row, own in zip(train, seen, strict=True)
                if value in field.chosen(row.answer[field.name])
                for word in own
            )
            outside = everywhere - inside
            for word, z in log_odds(inside, outside).items():
                if z >= SURE and inside[word] > 1:
                    found.append(
                        Association(field.name, as_text(value), word, z, inside[word], everywhere[word])
                    )
    return sorted(found, key=lambda each: -each.z)


def _answered(group: Sequence[AskedRow], rule: Rule) -> Proportion:
    return Proportion(
        sum(each.answer is not None and rule.applies(each.answer) for each in group), len(group)
    )


def _groups(evaluation: Evaluation, asked: Sequence[AskedRow], train: Sequence[Row]) -> list[dict[str, Any]]:
    """Misses that are alike, the most frequent first."""
    facts = {each.request: each.facts for each in asked}
    wrong = evaluation.checks.filter(~pl.col("right")).with_columns(
        facts=pl.col("request").map_elements(
            lambda request: repr(sorted(facts[request].items())), return_dtype=pl.String
        )
    )
    grouped = wrong.group_by("field", "gold", "answered", "facts", maintain_order=True).agg(
        pl.len().alias("rows"), pl.col("request").first()
    )
    groups = []
    for line in grouped.sort("rows", descending=True, maintain_order=True).iter_rows(named=True):
        own = dict(facts[line.pop("request")])
        groups.append({**line, "facts": own, "trained": sum(bool(own) and row.facts == own for row in train)})
    return groups


def _missing_mentions(
    bias: Bias, asked: Sequence[AskedRow], train: Sequence[Row], contract: Contract
) -> list[str]:
    """A line for each kind of request in which the label comes without its words."""
    rule = next(rule for rule in contract.rules if rule.name == bias.rule)
    wrong = [e for e in asked if e.answer and rule.applies(e.answer) and not rule.mentioned(e.request)]
    lines = []
    for rate in bias.rates:
        condition = rate.condition
        if condition == "any" or (rate.unmentioned.share or 0.0) <= BOUND:
            continue
        like = next(
            e.request
            for e in wrong
            if e.source == rate.source and (condition == e.kind or e.facts.get(condition) is True)
        )
        line = (
            f"{condition} without {rule.mentions[0]}: {rate.unmentioned} answered {bias.label!r}, like "
            f"{like!r}"
        )
        if known := [row for row in train if row.facts and row.facts.get(condition) is True]:
            bare = sum(not rule.mentioned(row.request) for row in known)
            line += f"; {bare} of {len(known)} such training rows mention no {rule.mentions[0]}"
        lines.append(line)
    return lines


def _missing_facts(group: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{name} {as_text(value)}" for name, value in group["facts"].items())
    wrong = f"{group['field']} {group['answered']!r} instead of {group['gold']!r} in {group['rows']} rows"
    return f"{facts}: {wrong}; {group['trained']} training rows have these facts"
