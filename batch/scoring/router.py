"""Texts in, scored rows out, in order: the part of the job that knows nothing of files.

The local run, evaluation and a Ray actor share it: ``Router.route(batches of texts) → batches of scored
rows``.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, Self

from batch.engine import AdapterSpec, Asked, Completion, Continued
from batch.errors import AdapterError
from batch.scoring.lane import Lane, ScoredRow

# rows held at most, in multiples of the window: a row whose answer is known takes no place in that
READ_AHEAD = 16
ENCODED_AHEAD = 16  # batches with the tokenizer at most: it goes on while completions are scored


class EngineClient(Protocol):
    """What the router needs of an engine; `EngineProcess` is one, `Supervisor` one that survives."""

    def load(self, adapter: AdapterSpec) -> dict[str, Any]: ...
    def submit(self, adapter: str, work: Sequence[tuple[int, Asked]]) -> None: ...
    def poll(self) -> list[Completion]: ...


class AnswerCache(Protocol):
    """Answers by text, of this adapter; `AnswerStore` is one."""

    def recall(self, adapter: str, texts: Sequence[str]) -> dict[str, ScoredRow]: ...
    def remember(self, adapter: str, rows: Mapping[str, ScoredRow]) -> None: ...


class Known(NamedTuple):
    """Where to look before an engine is asked: the answers of this run, and those of earlier ones."""

    run: AnswerCache | None = None
    earlier: AnswerCache | None = None


NOTHING_KNOWN = Known()


class Requests(NamedTuple):
    """A batch of texts (`str`, None or `INVALID_UTF8`), each with the lane that answers it; None where the
    row's adapter cannot be served.
    """

    texts: Sequence[Any]
    lanes: Sequence[Lane | None]

    @classmethod
    def to(cls, lane: Lane, texts: Sequence[Any]) -> Self:
        return cls(texts, [lane] * len(texts))


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

    @classmethod
    def total(cls, of: Sequence[Self]) -> Self:
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: sum(getattr(each, name) for each in of) for name in names})

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
    lane: Lane
    text: str
    rows: list[tuple[_Batch, int]]  # all those with this text and lane, each by its place in its batch
    ids: Sequence[int] = ()
    labelled: tuple[ScoredRow, Continued] | None = None  # what waits for its texts only


class Router:
    """Feeds an engine. `window` is how many requests it keeps with the engine at most.

    A lane's adapter is loaded when a row first needs it. Equal texts are asked once, and those whose answers
    are `known` not at all.
    """

    def __init__(
        self,
        engine: EngineClient,
        window: int = 1024,
        on_progress: Callable[[Counts], None] | None = None,
        known: Known = NOTHING_KNOWN,
    ) -> None:
        self._engine = engine
        self._window = window
        self._on_progress = on_progress
        self._known = known
        self._served: dict[str, bool] = {}  # whether the engine took it, by each adapter's name
        self._waiting: dict[int, _Waiting] = {}
        # these and those in `_encoding`, by adapter and text
        self._asked: dict[tuple[str, str], _Waiting] = {}
        self._encoding: deque[tuple[list[_Waiting], Future[list[list[int]]]]] = deque()
        self._next_key = 0
        self._ahead = 0  # sizes of the batches read and not yet given back
        self.counts = Counts()

    def route(self, batches: Iterable[Requests]) -> Iterator[list[ScoredRow]]:
        """Score batches of requests; yields as many batches, in the same order.

        Reads ahead until the window is full, so the engine never waits at the end of a batch. Raises
        `EngineError`.
        """
        pending: deque[_Batch] = deque()
        # the tokenizer lets go of the GIL: it works while answers are scored
        with ThreadPoolExecutor(1) as pool:
            for texts, lanes in batches:
                pending.append(self._admit(texts, lanes, pool))
                while self._encoding and (len(self._encoding) > ENCODED_AHEAD or self._encoding[0][1].done()):
                    self._dispatch()
                    yield from self._make_room(pending)
                yield from self._make_room(pending)
            while self._encoding:
                self._dispatch()
                yield from self._make_room(pending)
        while pending:
            self._collect()
            yield from self._finished(pending)

    def _make_room(self, pending: deque[_Batch]) -> Iterator[list[ScoredRow]]:
        """Wait for answers while the engine has as many requests as it may have, or too many rows
        are held.
        """
        yield from self._finished(pending)
        while len(self._waiting) >= self._window or (
            self._waiting and self._ahead >= READ_AHEAD * self._window
        ):
            self._collect()
            yield from self._finished(pending)

    def _admit(self, texts: Sequence[Any], lanes: Sequence[Lane | None], pool: Executor) -> _Batch:
        """Turn unusable texts into error rows at once and have the new ones tokenised."""
        characters = sum(len(text) for text in texts if isinstance(text, str))
        batch = _Batch([None] * len(texts), 0, len(texts) + characters // 1024)
        self._ahead += batch.size
        # by adapter: its texts and their places in the batch
        new: dict[str, tuple[Lane, dict[str, list[int]]]] = {}
        for index, (text, lane) in enumerate(zip(texts, lanes, strict=True)):
            if lane is None:
                self._finish(batch, index, ScoredRow(None, None, (), "unknown_adapter"))
            elif error := lane.refuse(text):
                self._finish(batch, index, ScoredRow(None, None, (), error))
            elif waiting := self._asked.get((lane.name, text)):
                waiting.rows.append((batch, index))
                batch.missing += 1
                self.counts.deduplicated += 1
            else:
                _, places = new.setdefault(lane.name, (lane, {}))
                places.setdefault(text, []).append(index)
        for lane, places in new.values():
            self.counts.deduplicated += self._recall(self._known.run, lane, batch, places)
            self.counts.cached += self._recall(self._known.earlier, lane, batch, places)
            asked = [
                _Waiting(lane, text, [(batch, index) for index in indices])
                for text, indices in places.items()
            ]
            for waiting in asked:
                self._asked[lane.name, waiting.text] = waiting
                batch.missing += len(waiting.rows)
                self.counts.deduplicated += len(waiting.rows) - 1
            if asked:
                self._encoding.append((asked, pool.submit(lane.encode, list(places))))
        return batch

    def _dispatch(self) -> None:
        """Hand the texts that were tokenised first to the engine, short ones first: like lengths make even
        steps.
        """
        asked, encoded = self._encoding.popleft()
        lane = asked[0].lane
        work: list[tuple[int, Asked]] = []
        served = self._load(lane)
        for ids, waiting in sorted(zip(encoded.result(), asked, strict=True), key=lambda pair: len(pair[0])):
            if not served or not lane.fits(ids):
                self._answer(waiting, ScoredRow(None, None, (), "too_long" if served else "unknown_adapter"))
                continue
            waiting.ids = ids
            work.append((self._key(waiting), ids))
        if work:
            self._engine.submit(lane.name, work)

    def _key(self, waiting: _Waiting) -> int:
        """Note what waits for the engine, under a new key."""
        self._next_key += 1
        self._waiting[self._next_key - 1] = waiting
        return self._next_key - 1

    def _load(self, lane: Lane) -> bool:
        """Whether the engine serves this adapter, which it is given when a row first needs it."""
        if lane.name not in self._served:
            try:
                self._engine.load(lane.adapter)
                self._served[lane.name] = True
            except AdapterError:
                self._served[lane.name] = False
        return self._served[lane.name]

    def _answer(self, waiting: _Waiting, row: ScoredRow) -> None:
        """Give `row` to all rows with this text."""
        del self._asked[waiting.lane.name, waiting.text]
        for batch, index in waiting.rows:
            batch.missing -= 1
            self._finish(batch, index, row)

    def _recall(
        self, cache: AnswerCache | None, lane: Lane, batch: _Batch, places: dict[str, list[int]]
    ) -> int:
        """Finish the rows whose answers are known, and take their texts out of `places`; returns how many."""
        recalled = 0
        for text, row in cache.recall(lane.name, list(places)).items() if cache else ():
            for index in (indices := places.pop(text)):
                self._finish(batch, index, row)
            recalled += len(indices)
        return recalled

    def _collect(self) -> None:
        answered: dict[str, dict[str, ScoredRow]] = {}  # by adapter and text
        again: dict[str, list[tuple[int, Asked]]] = {}  # by adapter
        counts, caches = self.counts, [cache for cache in self._known if cache]
        for completion in self._engine.poll():
            waiting = self._waiting.pop(completion.key)
            lane = waiting.lane
            counts.prompt_tokens += lane.prompt_tokens(waiting.ids)
            counts.cached_tokens += completion.cached
            counts.answer_tokens += len(completion.token_ids)
            if waiting.labelled:
                row = lane.with_texts(*waiting.labelled, completion)
            else:
                counts.inferred += 1
                row = lane.score(completion, waiting.text)
                if asked := lane.texts_of(row, completion, waiting.ids):
                    waiting.labelled = row, asked
                    again.setdefault(lane.name, []).append((self._key(waiting), asked))
                    continue
            if caches:
                answered.setdefault(lane.name, {})[waiting.text] = row
            self._answer(waiting, row)
        for adapter, work in again.items():
            self._engine.submit(adapter, work)
        for cache in caches:
            for adapter, rows in answered.items():
                cache.remember(adapter, rows)
        if self._on_progress:
            self._on_progress(counts)

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
