"""Hashes of many values at once: which are there more than once, and which were there in which order."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from batch.storage.schema import plain

Int64s = np.ndarray[Any, np.dtype[np.int64]]
COMPARED = 1 << 18  # hashes compared at a time


def text_hashes(texts: Sequence[bytes | None]) -> Int64s:
    """64 bits a text, int64 [texts], good within this process only; 0 for None."""
    hashes: Int64s = np.fromiter((0 if text is None else hash(text) for text in texts), np.int64, len(texts))
    return hashes


def equal(hashes: Int64s) -> Iterator[Int64s]:
    """Those that are there more than once, sorted, some at a time. Sorts `hashes` in place: of 500 million
    there is no room for another copy, nor for the ids of an input that was exported twice.
    """
    hashes.sort()
    for start in range(0, len(hashes), COMPARED):
        some = hashes[start : start + COMPARED + 1]  # the next one's first may equal this one's last
        again = np.unique(some[1:][some[1:] == some[:-1]])
        if len(again):
            yield again


def repeated(hashes: Int64s) -> Int64s:
    """All that are :func:`equal`, sorted."""
    again: Int64s = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *equal(hashes)]))
    return again


class IdDigest:
    """sha256 over a sequence of ids in order, whatever the batches they come in. Ids are strings, bytes or
    whole numbers.
    """

    def __init__(self) -> None:
        self._values, self._lengths = hashlib.sha256(), hashlib.sha256()

    def update(self, ids: pa.Array) -> None:
        """Add ids; there are no nulls among them."""
        ids = plain(ids)
        if pa.types.is_integer(ids.type):
            self._values.update(ids.cast(_widest(ids.type)).to_numpy().tobytes())
            return
        if pa.types.is_decimal(ids.type):
            ids = ids.cast(pa.string())
        array = ids.cast(pa.large_binary())
        if len(array):
            offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[
                array.offset : array.offset + len(array) + 1
            ]
            self._lengths.update(np.diff(offsets).tobytes())
            if data := array.buffers()[2]:
                self._values.update(data.slice(int(offsets[0]), int(offsets[-1] - offsets[0])))

    def hexdigest(self) -> str:
        return hashlib.sha256(self._lengths.digest() + self._values.digest()).hexdigest()


def _widest(kind: pa.DataType) -> pa.DataType:
    return pa.uint64() if pa.types.is_unsigned_integer(kind) else pa.int64()
