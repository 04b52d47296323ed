"""Which words make a label come that nothing mentions: each is left out in turn and the request asked again.

Understanding neural networks through representation erasure (Li, Monroe and Jurafsky 2016). Where a label
goes with the word, the word drives it in that request; associations only say that the two keep company.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from batch.contract.contract import Contract
from train.diagnosis.contrast import mention_rules
from train.diagnosis.diagnose import AskedRow
from train.evaluation.evaluate import Answered
from train.evaluation.statistics import Proportion
from train.likeness import WORDS

REQUESTS = 10  # asked again for each rule; a request of 15 words costs 15 rows


class Erasure(NamedTuple):
    """A request in which `rule`'s label came without its words, less one word."""

    rule: str
    word: str
    request: str


def erasures(asked: Sequence[AskedRow], contract: Contract) -> list[Erasure]:
    found = []
    for rule in mention_rules(contract):
        wrong = [
            each.request
            for each in asked
            if each.answer and rule.applies(each.answer) and not rule.mentioned(each.request)
        ]
        for request in wrong[:REQUESTS]:
            found += [Erasure(rule.name, word, rest) for word, rest in _without_each_word(request)]
    return found


def driven(
    erased: Sequence[Erasure], answers: Sequence[Answered], contract: Contract
) -> dict[str, list[tuple[str, Proportion]]]:
    """Rule → its words with the share of erasures after which the label was gone, the most telling first."""
    rules = {rule.name: rule for rule in mention_rules(contract)}
    counts: dict[tuple[str, str], Proportion] = defaultdict(lambda: Proportion(0, 0))
    for (rule, word, _), scored in zip(erased, answers, strict=True):
        gone = scored.answer is not None and not rules[rule].applies(scored.answer)
        counts[rule, word] += Proportion(gone, 1)
    ranked = sorted(counts.items(), key=lambda item: -item[1].interval[0])
    return {
        name: [(word, share) for (rule, word), share in ranked if rule == name and share.count]
        for name in rules
    }


def _without_each_word(request: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(f"(?:{WORDS}) ?", request):
        rest = request[: match.start()] + request[match.end() :]
        if rest.strip():
            yield match[0].strip().lower(), rest
