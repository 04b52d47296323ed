"""Texts in, scored rows out, in order: the part of the job that knows nothing of files.

The local run, evaluation and a Ray actor share it: ``Router.route(batches of texts) → batches of scored rows``.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from batch.contract import Contract
from batch.engine import AdapterSpec, Completion
from batch.errors import EngineError, InvalidAnswer
from batch.score import field_scores
from batch.tokens import Renderer

INVALID_UTF8 = object()  # stands for a text whose bytes are not UTF-8
ENGINE_TIMEOUT = 600.0  # seconds without any completion after which the engine counts as hung

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


class Submits(Protocol):
    """What the router needs of an engine; `EngineProcess` is one."""

    def submit(self, adapter: str, work: Sequence[tuple[int, Sequence[int]]]) -> None: ...
    def poll(self, timeout: float) -> list[Completion]: ...


@dataclasses.dataclass
class Counts:
    """What passed through the router."""

    rows: int = 0  # answered or in error
    errors: int = 0
    inferred: int = 0  # requests that the engine completed
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


class _Waiting(NamedTuple):
    batch: _Batch
    row: int  # its place in the batch
    text: str
    prompt_tokens: int


class Router:
    """Feeds one loaded adapter of an engine. `window` is how many requests it keeps with the engine at most."""

    def __init__(
        self,
        engine: Submits,
        adapter: AdapterSpec,
        contract: Contract,
        renderer: Renderer,
        window: int = 1024,
        on_progress: Callable[[Counts], None] | None = None,
    ) -> None:
        self._engine = engine
        self._adapter = adapter
        self._contract = contract
        self._renderer = renderer
        self._window = window
        self._on_progress = on_progress
        self._waiting: dict[int, _Waiting] = {}
        self._fixed_tokens = len(renderer.prefix_ids) + len(renderer.suffix_ids)
        self._next_key = 0
        self.counts = Counts()

    def route(self, batches: Iterable[Sequence[Any]]) -> Iterator[list[ScoredRow]]:
        """Score batches of texts (`str`, None or `INVALID_UTF8`); yields as many batches, in the same order.

        Reads ahead until the window is full, so the engine never waits at the end of a batch. Raises `EngineError`.
        """
        pending: deque[_Batch] = deque()
        for texts in batches:
            pending.append(self._admit(texts))
            while len(self._waiting) >= self._window:
                self._collect()
                yield from _finished(pending)
            yield from _finished(pending)
        while pending:
            yield from _finished(pending)
            if pending:
                self._collect()

    def _admit(self, texts: Sequence[Any]) -> _Batch:
        """Turn unusable texts into error rows at once and hand the others to the engine."""
        batch = _Batch([None] * len(texts), 0)
        usable = []
        for index, text in enumerate(texts):
            error = self._refuse(text)
            if error:
                self._finish(batch, index, ScoredRow(None, None, (), error))
            else:
                usable.append(index)
        work = []
        for index, ids in zip(usable, self._renderer.encode_requests([texts[i] for i in usable]), strict=True):
            if len(ids) > self._contract.max_tokens:
                self._finish(batch, index, ScoredRow(None, None, (), "too_long"))
                continue
            self._waiting[self._next_key] = _Waiting(batch, index, texts[index], self._fixed_tokens + len(ids))
            work.append((self._next_key, ids))
            self._next_key += 1
        batch.missing = len(work)
        if work:
            self._engine.submit(self._adapter.name, work)
        return batch

    def _refuse(self, text: Any) -> str | None:
        if text is None:
            return "null_text"
        if text is INVALID_UTF8:
            return "invalid_utf8"
        if len(text) > self._contract.max_chars:
            return "too_long"
        if not text.strip():
            return "empty_text"
        return None

    def _collect(self) -> None:
        completions = self._engine.poll(ENGINE_TIMEOUT)
        if not completions:
            raise EngineError(f"the engine has finished no request for {ENGINE_TIMEOUT:.0f} seconds; run again to resume")
        for completion in completions:
            waiting = self._waiting.pop(completion.key)
            self.counts.inferred += 1
            self.counts.prompt_tokens += waiting.prompt_tokens
            self.counts.cached_tokens += completion.cached
            self.counts.answer_tokens += len(completion.token_ids)
            waiting.batch.missing -= 1
            self._finish(waiting.batch, waiting.row, self._score(completion, waiting.text))
        if self._on_progress:
            self._on_progress(self.counts)

    def _finish(self, batch: _Batch, index: int, row: ScoredRow) -> None:
        batch.rows[index] = row
        self.counts.rows += 1
        self.counts.errors += row.error_code is not None

    def _score(self, completion: Completion, text: str) -> ScoredRow:
        """Parse and validate; an answer that is not legal is an error row, never repaired."""
        if completion.finish != "stop":
            return ScoredRow(None, None, (), "truncated" if completion.finish == "length" else "engine_failure")
        try:
            answer, spans = self._contract.parse(self._renderer.decode(completion.token_ids))
        except (InvalidAnswer, UnicodeDecodeError):
            return ScoredRow(None, None, (), "invalid_output")
        scores = field_scores(self._renderer, completion.token_ids, completion.logprobs, spans)
        return ScoredRow(answer, scores, tuple(self._contract.violations(answer, text)))


def _finished(pending: deque[_Batch]) -> Iterator[list[ScoredRow]]:
    """The batches at the front that miss nothing."""
    while pending and pending[0].missing == 0:
        yield pending.popleft().rows  # type: ignore[misc]
