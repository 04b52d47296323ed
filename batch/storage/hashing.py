"""Hashes of many texts at once, to find those that are there more than once without holding the texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Int64s = np.ndarray[Any, np.dtype[np.int64]]


def text_hashes(texts: Sequence[bytes | None]) -> Int64s:
    """64 bits a text, int64 [texts], good within this process only; 0 for None."""
    hashes: Int64s = np.fromiter((0 if text is None else hash(text) for text in texts), np.int64, len(texts))
    return hashes


def repeated(hashes: Int64s) -> Int64s:
    """Those that are there more than once, sorted. Sorts `hashes` in place, to hold no second copy."""
    hashes.sort()
    again: Int64s = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    return again
