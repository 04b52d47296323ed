"""The plan: a backlog cut into units, contiguous ranges of rows, from its footers alone.

Whoever scores a unit needs to know nothing of the others. The same backlog is always cut alike, so what one
process did, another finds.
"""

import dataclasses
from collections.abc import Callable, Iterator

import pyarrow as pa

from batch.background import one_ahead

LEAST_ROWS, MOST_ROWS = 1 << 10, 1 << 16  # of a unit; the last one may have fewer
UNITS = 1 << 10  # of a plan, unless units would be smaller or larger than that
SKIP_ROWS = 1 << 19  # rows that are decoded and dropped rather than the file opened again


@dataclasses.dataclass(frozen=True)
class Unit:
    """Rows `start` to `stop` of the input, `stop` left out."""

    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Plan:
    """Units of `unit_rows` rows each. Holds nothing a unit: a plan of 500 million rows is two numbers."""

    rows: int
    unit_rows: int

    @classmethod
    def of(cls, rows: int) -> "Plan":
        size = LEAST_ROWS
        while size < MOST_ROWS and size * UNITS < rows:
            size *= 2
        return cls(rows, size)

    def __len__(self) -> int:
        return -(-self.rows // self.unit_rows)

    def __getitem__(self, index: int) -> Unit:
        if not 0 <= index < len(self):
            raise IndexError(f"unit {index} of {len(self)}")
        start = index * self.unit_rows
        return Unit(index, start, min(self.rows, start + self.unit_rows))

    def __iter__(self) -> Iterator[Unit]:
        return map(self.__getitem__, range(len(self)))


class Cursor:
    """Reads ranges of rows from `batches`, which gives all rows from one on.

    Ranges in rising order cost one reading of the file, whatever its row groups: what lies between them is
    decoded and dropped.
    """

    def __init__(self, batches: Callable[[int], Iterator[pa.RecordBatch]]) -> None:
        self._batches = batches
        self._stream: Iterator[pa.RecordBatch] = iter(())
        self._at = -SKIP_ROWS  # the next row of the stream, after `_rest`
        self._rest: pa.RecordBatch | None = None

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows `start` to `stop`, in order, in batches of the stream's size at most."""
        if not 0 <= start - self._at < SKIP_ROWS:
            self._stream, self._at, self._rest = one_ahead(self._batches(start)), start, None
        while self._at < stop:
            batch = next(self._stream, None) if self._rest is None else self._rest
            if batch is None:
                return  # the reader has said why
            first, self._rest = self._at, None
            after = first + batch.num_rows
            if after > stop:
                self._rest, after = batch.slice(stop - first), stop
            self._at = after
            if after > max(start, first):
                yield batch.slice(max(0, start - first), after - max(start, first))
