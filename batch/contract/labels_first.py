"""A contract's answers in two parts: the labels, and behind them the free text that a person reads.

    {"team":"…","urgent":true  ,"reason":"…"}
    └──────── labels ───────┘     └─ texts ─┘

The labels are decoded under the whole contract's grammar, up to where they end: so they and their scores are
those of the whole answer, whether its texts follow or not.
"""

import re
from typing import Any

from batch.contract.contract import Contract
from batch.contract.json_text import compact_json
from batch.errors import ContractError

Span = tuple[int, int]


class LabelsFirst:
    """Raises `ContractError` where a text stands in front of a label: such a label depends on it."""

    def __init__(self, contract: Contract) -> None:
        scored, fields = contract.scored_fields, contract.fields
        if fields[: len(scored)] != scored:
            late = next(field for field in fields if not field.scored)
            raise ContractError(
                f"field {late.name!r} is a text in front of a label, so labels cannot be decoded without it; "
                "move the texts to the contract's end, or leave out --reasons"
            )
        self._contract = contract
        # Where a value may be the beginning of another (12 of 120), only what follows says that it has ended.
        values = [compact_json(value) for value in scored[-1].values]
        open_ended = any(a != b and b.startswith(a) for a in values for b in values)
        self.end = "," if open_ended else ""
        sample = contract.serialise(contract.sample_answers()[0])
        match = re.compile(contract.regex).fullmatch(sample)
        assert match
        self._texts = sample[match.end(len(scored)) :]  # legal ones, to read labels by
        labels = r"\{" + ",".join(f'"{field.name}":{field.pattern}' for field in scored)
        self._labels = re.compile(f"{labels}(?={self.end})")
        # What the labels are decoded up to, and the texts under.
        self.expression = _plain(labels) + self.end
        self._behind = _plain("".join(f',"{f.name}":{f.pattern}' for f in fields[len(scored) :]) + r"\}")

    def labels(self, text: str) -> str:
        """The labels' part of an answer that may go on behind it, in the middle of anything."""
        match = self._labels.match(text)
        return match[0] if match else ""

    def whole(self, text: str) -> str:
        """The labels of such an answer with legal texts behind them."""
        return self.labels(text) + self._texts

    def parse(self, text: str) -> tuple[dict[str, Any], dict[str, Span]]:
        """As :meth:`Contract.parse`, of an answer that goes on or not; its texts are None."""
        answer, spans = self._contract.parse(self.whole(text))
        return {name: value if name in spans else None for name, value in answer.items()}, spans

    def rest(self, labels: str, kept: str) -> str:
        """The expression of what follows `kept`, a beginning of `labels`."""
        return re.sub(r"([][\\.^$*+?{}()|/-])", r"\\\1", labels[len(kept) :]) + self._behind


def _plain(expression: str) -> str:
    """Without groups of other kinds, which guided decoding does not have."""
    return re.sub(r"\(\?(?::|P<\w+>)", "(", expression)


def labels_first(contract: Contract, reasons: str) -> LabelsFirst | None:
    """How a contract's answers are parted for `--reasons`; None where they are decoded as a whole."""
    whole = reasons == "all" or all(field.scored for field in contract.fields)
    return None if whole else LabelsFirst(contract)
