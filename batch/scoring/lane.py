"""One adapter under its contract, as the router sees it: which texts it takes, their token ids, what its
answers say.
"""

import functools
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.contract.labels_first import LabelsFirst
from batch.contract.rules import Rule
from batch.engine import AdapterSpec, Completion, Continued
from batch.errors import InvalidAnswer
from batch.scoring.runner_up import Place, RunnerUp, Second, places
from batch.scoring.score import Part, part_scores, parts_of, span_scores, token_spans, told_in_front

_SURROGATE = re.compile("[\ud800-\udfff]")
ANSWERS = 4096  # different ones that are kept read
INVALID_UTF8 = object()  # stands for a text whose bytes are not UTF-8
TOO_LONG = object()  # for the text of a row that holds more than a run routes
STAND_INS = {"invalid_utf8": INVALID_UTF8, "too_long": TOO_LONG}

ERROR_MESSAGES = {
    "null_text": "the request is null",
    "empty_text": "the request is empty or only white space",
    "too_long": "the request is longer than the contract's bounds, or the row than 16 MiB",
    "invalid_utf8": "the request is not valid UTF-8",
    "truncated": "the answer did not end within its bound",
    "invalid_output": "the answer is not the contract's compact JSON",
    "engine_failure": "the engine could not run this request",
    "unknown_adapter": "the row's adapter is not there, or cannot be served beside those of other rows",
}
# the text's own: no retry can change them
TEXT_ERRORS = {
    "null_text",
    "empty_text",
    "too_long",
    "invalid_utf8",
}


class ScoredRow(NamedTuple):
    """One request's outcome: either `answer` and `scores` (probability per scored field), or an
    `error_code`.
    """

    answer: dict[str, Any] | None
    scores: dict[str, float] | None
    violations: tuple[str, ...] = ()
    error_code: str | None = None
    # for each set of labels, the probability of each label that it holds, given those before it
    label_scores: dict[str, tuple[float, ...]] | None = None
    denied: tuple[str, ...] = ()  # the violations that a negation in the request alone makes
    # by field, where they are known: the value that came second and its probability
    seconds: dict[str, Second] | None = None

    @property
    def error(self) -> str | None:
        return ERROR_MESSAGES[self.error_code] if self.error_code else None


class _Read(NamedTuple):
    """What an answer's tokens say, whatever the request and their probabilities."""

    answer: dict[str, Any]
    spans: dict[str, slice]  # of each scored field's tokens
    places: dict[str, tuple[Place, ...]]  # of the tokens of each field that has a second value
    parts: dict[str, tuple[Part, ...]]  # of each set
    # those that speak of such an answer and that it breaks, or may break, by the request's words
    rules: tuple[Rule, ...]


class Lane:
    """An adapter that an engine serves, with the contract and the renderer that belong to it.

    With `first`, an answer is its labels, and its texts are asked for where `wants_texts` says so of the row.
    """

    def __init__(
        self,
        adapter: AdapterSpec,
        contract: Contract,
        renderer: Renderer,
        first: LabelsFirst | None = None,
        wants_texts: Callable[[ScoredRow], bool] = lambda row: False,
    ) -> None:
        self._first = first
        self._wants_texts = wants_texts
        self.adapter = adapter
        self.name = adapter.name
        self._contract = contract
        self._renderer = renderer
        self._fixed_tokens = len(renderer.prefix_ids) + len(renderer.suffix_ids)
        self._runners_up = {
            field.name: RunnerUp(field, contract, renderer)
            for field in contract.scored_fields
            if field.ranked
        }
        # Many requests get the same answer. Not a method: what it kept would hold the lane, and the lane it.
        read = functools.partial(_read_answer, contract, renderer, first, told_in_front(contract, renderer))
        self._read = functools.lru_cache(ANSWERS)(read)

    def refuse(self, text: Any) -> str | None:
        """The error code of a text that no engine need see."""
        if text is None:
            return "null_text"
        if text is INVALID_UTF8:
            return "invalid_utf8"
        if text is TOO_LONG:
            return "too_long"
        if len(text) > self._contract.max_chars:
            return "too_long"
        if not text.strip():
            return "empty_text"
        if not text.isascii() and _SURROGATE.search(text):
            return "invalid_utf8"  # from JSON or Python: no file of Parquet gives such a text
        return None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._renderer.encode_requests(texts)

    def fits(self, request_ids: Sequence[int]) -> bool:
        return len(request_ids) <= self._contract.max_tokens

    def prompt_tokens(self, request_ids: Sequence[int]) -> int:
        return self._fixed_tokens + len(request_ids)

    def score(self, completion: Completion, text: str) -> ScoredRow:
        """Parse and validate; an answer that is not legal is an error row, never repaired."""
        if completion.finish != "stop":
            return _unfinished(completion)
        read = self._read(tuple(completion.token_ids))
        if read is None:
            return ScoredRow(None, None, (), "invalid_output")
        scores = span_scores(read.spans, completion.logprobs)
        if math.isnan(sum(scores.values())):  # overflow in the weights: such an answer chose nothing
            return ScoredRow(None, None, (), "engine_failure")
        violations: list[str] = []
        denied: list[str] = []
        for rule in read.rules:
            mention = rule.mention(text) if rule.mentions else "absent"
            if mention != "meant":
                violations.append(rule.name)
            if mention == "denied":
                denied.append(rule.name)
        label_scores = {
            name: part_scores(self._renderer, parts, completion.logprobs, completion.others or {})
            for name, parts in read.parts.items()
        }
        seconds = self._seconds(read, completion) if completion.others else None
        return ScoredRow(
            read.answer, scores, tuple(violations), None, label_scores or None, tuple(denied), seconds
        )

    def _seconds(self, read: _Read, completion: Completion) -> dict[str, Second]:
        found = {
            name: self._runners_up[name].find(read.answer[name], own, completion)
            for name, own in read.places.items()
        }
        return {name: second for name, second in found.items() if second}

    def texts_of(
        self, row: ScoredRow, completion: Completion, request_ids: Sequence[int]
    ) -> Continued | None:
        """What to ask for the texts of a row whose labels `completion` has; None where nobody reads them.

        Tokens that reach over the labels' end are left to the rest, where their labels' part is forced.
        """
        if self._first is None or row.answer is None or not self._wants_texts(row):
            return None
        labels = self._first.labels(_beginning(self._renderer, completion.token_ids))
        kept, size = 0, 0
        for index, token in enumerate(completion.token_ids, 1):
            size += len(self._renderer.token_bytes(token))
            if size > len(labels.encode()):
                break
            if _is_utf8(labels.encode()[:size]):
                kept = index
        rest = self._first.rest(labels, self._renderer.decode(completion.token_ids[:kept]))
        return Continued(tuple(request_ids), tuple(completion.token_ids[:kept]), rest)

    def with_texts(self, row: ScoredRow, asked: Continued, completion: Completion) -> ScoredRow:
        """The row with its texts; an error where they did not come."""
        if completion.finish != "stop":
            return _unfinished(completion)
        try:
            text = self._renderer.decode([*asked.answer_ids, *completion.token_ids])
            answer, _ = self._contract.parse(text)
        except (InvalidAnswer, UnicodeDecodeError):
            return ScoredRow(None, None, (), "invalid_output")
        return row._replace(answer=answer)


def _unfinished(completion: Completion) -> ScoredRow:
    return ScoredRow(None, None, (), "truncated" if completion.finish == "length" else "engine_failure")


def _beginning(renderer: Renderer, token_ids: Sequence[int]) -> str:
    """An answer's text up to a character that its last token begins."""
    return b"".join(map(renderer.token_bytes, token_ids)).decode(errors="ignore")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_answer(
    contract: Contract,
    renderer: Renderer,
    first: LabelsFirst | None,
    in_front: Collection[str],
    token_ids: tuple[int, ...],
) -> _Read | None:
    try:
        text = first.whole(_beginning(renderer, token_ids)) if first else renderer.decode(token_ids)
        answer, spans = contract.parse(text)
    except (InvalidAnswer, UnicodeDecodeError):
        return None
    rules = tuple(rule for rule in contract.rules_for(answer) if rule.mentions or not rule.allows(answer, ""))
    parts = {name: parts_of(renderer, token_ids, found) for name, found in contract.parts(text).items()}
    if first:
        answer = {name: value if name in spans else None for name, value in answer.items()}
    tokens = token_spans(renderer, token_ids, spans, in_front)
    ranked = {
        field.name: places(renderer, token_ids, tokens[field.name], spans[field.name][0])
        for field in contract.scored_fields
        if field.ranked
    }
    return _Read(answer, tokens, ranked, parts, rules)
