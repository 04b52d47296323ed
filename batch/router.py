"""Texts in, scored rows out, in order: the part of the job that knows nothing of files.

The local run, evaluation and a Ray actor share it: ``Router.route(batches of texts) → batches of scored rows``.
"""

import dataclasses
import functools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from batch.contract import Contract
from batch.engine import AdapterSpec, Completion
from batch.errors import InvalidAnswer
from batch.rules import Rule
from batch.score import span_scores, token_spans
from batch.tokens import Renderer

_SURROGATE = re.compile("[\ud800-\udfff]")
ANSWERS = 4096  # different ones that are kept read
READ_AHEAD = 16  # rows held at most, in multiples of the window: a row whose answer is known takes no place in that
INVALID_UTF8 = object()  # stands for a text whose bytes are not UTF-8

ERROR_MESSAGES = {
    "null_text": "the request is null",
    "empty_text": "the request is empty or only white space",
    "too_long": "the request is longer than the contract's bounds",
    "invalid_utf8": "the request is not valid UTF-8",
    "truncated": "the answer did not end within its bound",
    "invalid_output": "the answer is not the contract's compact JSON",
    "engine_failure": "the engine could not run this request",
}
TEXT_ERRORS = {"null_text", "empty_text", "too_long", "invalid_utf8"}  # the text's own: no retry can change them


class ScoredRow(NamedTuple):
    """One request's outcome: either `answer` and `scores` (probability per scored field), or an `error_code`."""

    answer: dict[str, Any] | None
    scores: dict[str, float] | None
    violations: tuple[str, ...] = ()
    error_code: str | None = None

    @property
    def error(self) -> str | None:
        return ERROR_MESSAGES[self.error_code] if self.error_code else None


NOTHING_KNOWN: Mapping[Any, Any] = MappingProxyType({})


class Submits(Protocol):
    """What the router needs of an engine; `EngineProcess` is one, `Supervisor` one that survives."""

    def submit(self, adapter: str, work: Sequence[tuple[int, Sequence[int]]]) -> None: ...
    def poll(self) -> list[Completion]: ...


class Remembers(Protocol):
    """Answers by text, of this adapter; `AnswerStore` is one."""

    def recall(self, adapter: str, texts: Sequence[str]) -> dict[str, ScoredRow]: ...
    def remember(self, adapter: str, rows: Mapping[str, ScoredRow]) -> None: ...


@dataclasses.dataclass
class Counts:
    """What passed through the router."""

    rows: int = 0  # answered or in error
    errors: int = 0
    inferred: int = 0  # requests that the engine completed
    deduplicated: int = 0  # rows whose text was asked for another row of this run
    cached: int = 0  # rows whose answer an earlier run had kept
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens, those that the prefix cache held
    answer_tokens: int = 0

    @property
    def cache_hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclasses.dataclass
class _Batch:
    rows: list[ScoredRow | None]
    missing: int
    size: int  # rows, and one more for each 1,024 characters


@dataclasses.dataclass(slots=True)
class _Waiting:
    text: str
    rows: list[tuple[_Batch, int]]  # all those with this text, each by its place in its batch
    prompt_tokens: int = 0


class _Read(NamedTuple):
    """What an answer's tokens say, whatever the request and their probabilities."""

    answer: dict[str, Any]
    spans: dict[str, slice]  # of each scored field's tokens
    rules: tuple[Rule, ...]  # those that speak of such an answer


class Router:
    """Feeds one loaded adapter of an engine. `window` is how many requests it keeps with the engine at most.

    Equal texts are asked once. `known` holds answers that need no engine, each by the counter of its rows.
    """

    def __init__(
        self,
        engine: Submits,
        adapter: AdapterSpec,
        contract: Contract,
        renderer: Renderer,
        window: int = 1024,
        on_progress: Callable[[Counts], None] | None = None,
        known: Mapping[Literal["deduplicated", "cached"], Remembers] = NOTHING_KNOWN,
    ) -> None:
        self._engine = engine
        self._adapter = adapter
        self._contract = contract
        self._renderer = renderer
        self._window = window
        self._on_progress = on_progress
        self._known = known
        self._read = functools.lru_cache(ANSWERS)(self._read_answer)  # many requests get the same answer
        self._waiting: dict[int, _Waiting] = {}
        self._asked: dict[str, _Waiting] = {}  # these and those in `_encoding`, by text
        self._encoding: deque[tuple[list[str], Future[list[list[int]]]]] = deque()
        self._fixed_tokens = len(renderer.prefix_ids) + len(renderer.suffix_ids)
        self._next_key = 0
        self._ahead = 0  # sizes of the batches read and not yet given back
        self.counts = Counts()

    def route(self, batches: Iterable[Sequence[Any]]) -> Iterator[list[ScoredRow]]:
        """Score batches of texts (`str`, None or `INVALID_UTF8`); yields as many batches, in the same order.

        Reads ahead until the window is full, so the engine never waits at the end of a batch. Raises `EngineError`.
        """
        pending: deque[_Batch] = deque()
        with ThreadPoolExecutor(1) as pool:  # the tokenizer lets go of the GIL: it works while answers are scored
            for texts in batches:
                pending.append(self._admit(texts, pool))
                while len(self._encoding) > 1:
                    self._dispatch()
                yield from self._finished(pending)
                while len(self._waiting) >= self._window or (self._waiting and self._ahead >= READ_AHEAD * self._window):
                    self._collect()
                    yield from self._finished(pending)
            while self._encoding:
                self._dispatch()
        yield from self._finished(pending)
        while pending:
            self._collect()
            yield from self._finished(pending)

    def _admit(self, texts: Sequence[Any], pool: Executor) -> _Batch:
        """Turn unusable texts into error rows at once and have the new ones tokenised."""
        characters = sum(len(text) for text in texts if isinstance(text, str))
        batch = _Batch([None] * len(texts), 0, len(texts) + characters // 1024)
        self._ahead += batch.size
        places: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            if error := self._refuse(text):
                self._finish(batch, index, ScoredRow(None, None, (), error))
            elif waiting := self._asked.get(text):
                waiting.rows.append((batch, index))
                batch.missing += 1
                self.counts.deduplicated += 1
            else:
                places.setdefault(text, []).append(index)
        self._recall(batch, places)
        for text, indices in places.items():
            self._asked[text] = _Waiting(text, [(batch, index) for index in indices])
            batch.missing += len(indices)
            self.counts.deduplicated += len(indices) - 1
        if places:
            self._encoding.append((list(places), pool.submit(self._renderer.encode_requests, list(places))))
        return batch

    def _dispatch(self) -> None:
        """Hand the texts that were tokenised first to the engine."""
        texts, encoded = self._encoding.popleft()
        work = []
        for text, ids in zip(texts, encoded.result(), strict=True):
            waiting = self._asked[text]
            if len(ids) > self._contract.max_tokens:
                self._answer(waiting, ScoredRow(None, None, (), "too_long"))
                continue
            waiting.prompt_tokens = self._fixed_tokens + len(ids)
            self._waiting[self._next_key] = waiting
            work.append((self._next_key, ids))
            self._next_key += 1
        if work:
            self._engine.submit(self._adapter.name, work)

    def _answer(self, waiting: _Waiting, row: ScoredRow) -> None:
        """Give `row` to all rows with this text."""
        del self._asked[waiting.text]
        for batch, index in waiting.rows:
            batch.missing -= 1
            self._finish(batch, index, row)

    def _recall(self, batch: _Batch, places: dict[str, list[int]]) -> None:
        """Finish the rows whose answers are known, and take their texts out of `places`."""
        for counter, answers in self._known.items():
            for text, row in answers.recall(self._adapter.name, list(places)).items():
                for index in (indices := places.pop(text)):
                    self._finish(batch, index, row)
                setattr(self.counts, counter, getattr(self.counts, counter) + len(indices))

    def _refuse(self, text: Any) -> str | None:
        if text is None:
            return "null_text"
        if text is INVALID_UTF8:
            return "invalid_utf8"
        if len(text) > self._contract.max_chars:
            return "too_long"
        if not text.strip():
            return "empty_text"
        if not text.isascii() and _SURROGATE.search(text):
            return "invalid_utf8"  # from JSON or Python: no file of Parquet gives such a text
        return None

    def _collect(self) -> None:
        answered: dict[str, ScoredRow] = {}
        for completion in self._engine.poll():
            waiting = self._waiting.pop(completion.key)
            self.counts.inferred += 1
            self.counts.prompt_tokens += waiting.prompt_tokens
            self.counts.cached_tokens += completion.cached
            self.counts.answer_tokens += len(completion.token_ids)
            row = answered[waiting.text] = self._score(completion, waiting.text)
            self._answer(waiting, row)
        for answers in self._known.values():
            answers.remember(self._adapter.name, answered)
        if self._on_progress:
            self._on_progress(self.counts)

    def _finish(self, batch: _Batch, index: int, row: ScoredRow) -> None:
        batch.rows[index] = row
        self.counts.rows += 1
        self.counts.errors += row.error_code is not None

    def _finished(self, pending: deque[_Batch]) -> Iterator[list[ScoredRow]]:
        """The batches at the front that miss nothing."""
        while pending and pending[0].missing == 0:
            batch = pending.popleft()
            self._ahead -= batch.size
            yield batch.rows  # type: ignore[misc]

    def _score(self, completion: Completion, text: str) -> ScoredRow:
        """Parse and validate; an answer that is not legal is an error row, never repaired."""
        if completion.finish != "stop":
            return ScoredRow(None, None, (), "truncated" if completion.finish == "length" else "engine_failure")
        read = self._read(tuple(completion.token_ids))
        if read is None:
            return ScoredRow(None, None, (), "invalid_output")
        violations = tuple(rule.name for rule in read.rules if not rule.allows(read.answer, text))
        return ScoredRow(read.answer, span_scores(read.spans, completion.logprobs), violations)

    def _read_answer(self, token_ids: tuple[int, ...]) -> _Read | None:
        try:
            answer, spans = self._contract.parse(self._renderer.decode(token_ids))
        except (InvalidAnswer, UnicodeDecodeError):
            return None
        return _Read(answer, token_spans(self._renderer, token_ids, spans), self._contract.rules_for(answer))
