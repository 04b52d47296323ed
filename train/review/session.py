"""One reviewer's sitting: which request is next, what a decision must be, and where it is kept.

Knows nothing of HTTP: `app.py` is its only caller that does.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batch.contract.contract import Contract
from batch.contract.label_fields import Labels
from batch.errors import DatasetError, InvalidAnswer
from train.dataset import Row, check_row
from train.decisions import Decision, DecisionLog, standing
from train.review.queue import Item

AHEAD = 20  # ids of requests that a page may fetch before they are needed
MOST_COMBINATIONS = 20_000  # of facts, for which a page is told the policy table's answer in advance


class Conflict(Exception):
    """Another tab or process has decided on this request meanwhile."""


class Session:
    def __init__(
        self,
        items: Sequence[Item],
        contract: Contract,
        log: DecisionLog,
        reviewer: str,
        examples: Sequence[Row] = (),
    ) -> None:
        """`examples` are labelled rows: from them come the facts and texts that a page proposes."""
        self._contract, self._log, self._reviewer = contract, log, reviewer
        self._items = {item.id: item for item in items}
        self._examples = _Examples(examples, contract)

    def task(self) -> dict[str, Any]:
        """What a page must know of the contract: fields and facts to ask for, and the policy
        table's answers.
        """
        facts = {name: list(values) for name, values in self._contract.facts.items()}
        return {
            "name": self._contract.name,
            "reviewer": self._reviewer,
            "fields": [
                {
                    "name": field.name,
                    "meaning": field.meaning,
                    "values": [
                        {"value": value, "meaning": field.meanings.get(value, "")} for value in field.values
                    ],
                    "text": not field.scored,
                    "many": isinstance(field, Labels),
                    "optional": getattr(field, "optional", False),
                }
                for field in self._contract.fields
            ],
            "facts": facts,
            "table": self._table() if facts else [],
            "texts": self._examples.texts(),
        }

    def state(self, again: bool = False) -> dict[str, Any]:
        """How far this reviewer is: `done` by kind of decision, how many are `left`, and the ids of the
        `next` ones.

        `again` asks for those that were skipped or left unsure. `last` is the latest decision that stands.
        """
        self._log.refresh()
        found = standing(self._log.decisions)
        own = {asked: each.kind for (asked, reviewer), each in found.items() if reviewer == self._reviewer}
        others = {
            asked
            for (asked, reviewer), each in found.items()
            if reviewer != self._reviewer and each.kind == "label"
        }
        items = {item.asked: item for item in self._items.values()}
        left = [
            item.id
            for asked, item in items.items()
            if (asked not in own and (asked not in others or item.overlap))
            or (again and own.get(asked) in ("skip", "unsure"))
        ]
        mine = [asked for asked in own if asked in items]
        return {
            "left": len(left),
            "next": left[:AHEAD],
            "done": Counter(own[asked] for asked in mine),
            "last": mine[-1][0] if mine else None,
        }

    def item(self, name: str) -> dict[str, Any] | None:
        """A request as a page shows it, with this reviewer's decision on it, if there is one. None for an
        unknown id.
        """
        item = self._items.get(name)
        if item is None:
            return None
        found = standing(self._log.decisions)
        others = {
            r: each for (asked, r), each in found.items() if asked == item.asked and r != self._reviewer
        }
        blind = item.overlap and any(each.kind == "label" for each in others.values())
        doubts = [
            f"{reviewer} is unsure: {each.content.get('note', 'no note')}"
            for reviewer, each in others.items()
            if each.kind == "unsure"
        ]
        mine = found.get((item.asked, self._reviewer))
        return {
            "id": item.id,
            "request": item.request,
            "blind": blind,
            "why": ["second reading: the model's answer is hidden"] if blind else [*item.why, *doubts],
            "answer": {} if blind else item.answer,
            "scores": {} if blind else item.scores,
            "seconds": {} if blind else item.seconds,
            "facts": None if blind else self._examples.facts(item.answer),
            "decision": mine and {**mine.content, "decision": mine.kind},
            "known": self._log.count(item.asked, self._reviewer),
        }

    def decide(self, kind: str, name: str, known: int, given: Mapping[str, Any]) -> None:
        """Keep a decision. Raises `InvalidAnswer` for one that is not whole, `Conflict`, `StorageError`."""
        item = self._items.get(name)
        if item is None:
            raise InvalidAnswer("this request is not in the queue")
        line: dict[str, Any] = {"id": item.id, "request": item.request}
        if kind == "label":
            line |= self._labels(item, given)
        elif kind not in ("unsure", "skip", "undo"):
            raise InvalidAnswer(f"unknown decision {kind!r}")
        if note := str(given.get("note") or "").strip():
            line.setdefault("note", note[:2000])  # a field of that name has its label there
        line |= {
            "decision": kind,
            "reviewer": self._reviewer,
            "reviewed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **({"audit": item.audit} if item.audit else {}),
        }
        if not self._log.add(line, known):
            raise Conflict

    def _labels(self, item: Item, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of a dataset row, checked as `batch-train lint` and `fit` check one."""
        names = [field.name for field in self._contract.fields]
        facts = given.get("facts")
        answer = given.get("answer")
        if not isinstance(answer, dict):
            raise InvalidAnswer("the answer is missing")
        if facts is not None:
            if not isinstance(facts, dict):
                raise InvalidAnswer("the facts are not an object")
            answer = {**answer, **self._contract.decide(facts)}
        if missing := [field.name for field in self._contract.scored_fields if field.name not in answer]:
            raise InvalidAnswer(f"{missing[0]} is not answered")  # null is an answer, "none of these"
        row = {"id": item.id, "request": item.request, **{name: answer.get(name) for name in names}}
        if facts is not None:
            row["facts"] = facts
        try:
            check_row(row, Path("review"), 1, self._contract)
        except DatasetError as error:
            raise InvalidAnswer(str(error).partition(": ")[2]) from error
        row |= {"suggested": dict(item.answer) or None, "adapter": item.adapter}
        return row if "why" in names else row | {"why": list(item.why)}

    def _table(self) -> list[dict[str, Any]] | None:
        """Every combination of facts with the answer that the policy table gives; None where they are too
        many.
        """
        facts = self._contract.facts
        combinations = list(itertools.islice(itertools.product(*facts.values()), MOST_COMBINATIONS + 1))
        if len(combinations) > MOST_COMBINATIONS:
            return None
        named = (dict(zip(facts, values, strict=True)) for values in combinations)
        return [{"facts": each, "answer": self._contract.decide(each)} for each in named]

    @property
    def decisions(self) -> Sequence[Decision]:
        return self._log.decisions


class _Examples:
    """What labelled rows teach a page to propose: the usual facts of an answer, and the usual texts
    of facts.
    """

    def __init__(self, rows: Sequence[Row], contract: Contract) -> None:
        self._scored = [field.name for field in contract.scored_fields]
        texts = [field.name for field in contract.fields if not field.scored]
        self._facts: dict[tuple[Any, ...], Counter[str]] = {}
        by_facts: dict[str, tuple[Mapping[str, Any], dict[str, Counter[str]]]] = {}
        self._known: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            if row.facts is None:
                continue
            key = repr(sorted(row.facts.items()))
            self._known[key] = row.facts
            self._facts.setdefault(self._values(row.answer), Counter())[key] += 1
            _, counts = by_facts.setdefault(key, (row.facts, {name: Counter() for name in texts}))
            for name in texts:
                if row.answer.get(name):
                    counts[name][row.answer[name]] += 1
        self._texts = list(by_facts.values())

    def facts(self, answer: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The facts that most rows with this answer's labels have."""
        counts = self._facts.get(self._values(answer)) if answer else None
        return self._known[counts.most_common(1)[0][0]] if counts else None

    def texts(self) -> list[dict[str, Any]]:
        """For each combination of facts the text that most rows with them have, field by field."""
        return [
            {"facts": facts, "texts": {name: c.most_common(1)[0][0] for name, c in counts.items() if c}}
            for facts, counts in self._texts
        ]

    def _values(self, answer: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(repr(answer.get(name)) for name in self._scored)
