"""Rows in, scored rows out, in order: an engine and its adapters. It knows no file and no store."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from batch.adapter.bundle import Bundle
from batch.errors import AdapterError
from batch.scoring.adapters import Adapters, lane_of, spec_of
from batch.scoring.lane import STAND_INS
from batch.scoring.output_rows import output_batch
from batch.scoring.router import NOTHING_KNOWN, Counts, EngineClient, Known, Requests, Router
from batch.storage.schema import is_string, plain
from batch.storage.sizes import ROW_BYTES, row_bytes

WINDOW = 4  # requests with the engine at most, in multiples of what it runs at once: it never waits for more
FEED_ROWS = 256  # of a chunk, or as many as the engine runs at once: fewer would cost more time a row

NONE: Mapping[str, int] = MappingProxyType({})


def unchanged(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


class Chunk(NamedTuple):
    """Some rows of a source: those of them to score, and how all of them come of the scored ones."""

    asked: pa.RecordBatch  # the input's columns
    complete: Callable[[pa.RecordBatch], pa.RecordBatch] = unchanged
    violations: Mapping[str, int] = NONE  # rule → rows, of those that are not asked


class Scored(NamedTuple):
    """A chunk's rows as the output has them."""

    batch: pa.RecordBatch
    violations: Counter[str]  # rule → rows


class Scorer:
    """One engine and what it serves."""

    def __init__(
        self,
        engine: EngineClient,
        adapters: Adapters,
        max_num_seqs: int,
        on_progress: Callable[[Counts], None] | None = None,
        known: Known = NOTHING_KNOWN,
    ) -> None:
        self._adapters = adapters
        self._lanes = {bundle.digest: lane_of(bundle, adapters.reasons) for bundle in adapters.served}
        self._router = Router(engine, WINDOW * max_num_seqs, on_progress, known)
        self.counts = self._router.counts
        self.feed_rows = max(FEED_ROWS, max_num_seqs)  # that a chunk should have

    def score(self, chunks: Iterable[Chunk], text_column: str, schema: pa.Schema) -> Iterator[Scored]:
        """As many as there are chunks, in their order; `schema` is the output's. Chunks are read ahead, so
        that the engine never waits at the end of one. Raises `EngineError`.
        """
        ahead: deque[tuple[Chunk, list[Bundle | None]]] = deque()

        def requests() -> Iterator[Requests]:
            for chunk in chunks:
                bundles = self._adapters.rows(chunk.asked)
                ahead.append((chunk, bundles))
                lanes = [self._lanes[bundle.digest] if bundle else None for bundle in bundles]
                yield Requests(_texts(chunk.asked, text_column), lanes)

        for rows in self._router.route(requests()):
            chunk, bundles = ahead.popleft()
            made = output_batch(chunk.asked, rows, bundles, self._adapters.answers, schema)
            violations = Counter(chunk.violations)
            violations.update(name for row in rows for name in row.violations)
            yield Scored(chunk.complete(made), violations)


def _texts(batch: pa.RecordBatch, text_column: str) -> list[Any]:
    texts, refused = read_texts(batch, text_column)
    values: list[Any] = [*texts]
    for row, code in refused.items():
        values[row] = STAND_INS[code]
    return values


def read_texts(batch: pa.RecordBatch, text_column: str) -> tuple[list[str | None], dict[int, str]]:
    """The batch's requests, and by their offsets the error codes of those that no contract need judge: their
    bytes are not UTF-8 (None in the list, like a null), or the row holds more than `ROW_BYTES`.
    """
    column = plain(batch.column(text_column))
    refused = {}
    if batch.nbytes > ROW_BYTES:
        refused = {int(row): "too_long" for row in np.flatnonzero(row_bytes(batch) > ROW_BYTES)}
    if pa.types.is_null(column.type):
        return [None] * len(column), refused
    if is_string(column.type):
        try:
            column.validate(full=True)  # nothing else in pyarrow looks at the bytes
            return column.to_pylist(), refused
        except (pa.ArrowInvalid, UnicodeDecodeError):
            pass
    texts: list[str | None] = []
    for offset, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            texts.append(None)
            refused.setdefault(offset, "invalid_utf8")
    return texts, refused


def load_first(engine: EngineClient, adapters: Adapters) -> dict[str, Any]:
    """Have an adapter loaded, which proves on its canary that it acts; returns what that showed.

    Where rows name theirs, one that does not act is only its rows' error, as long as another does. Raises
    `AdapterError`, `EngineError`.
    """
    *others, last = adapters.served
    for bundle in others:
        try:
            return engine.load(spec_of(bundle, adapters.reasons))
        except AdapterError:
            continue
    return engine.load(spec_of(last, adapters.reasons))
