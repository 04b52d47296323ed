"""How alike two texts are, and which of many are nearly the same.

A text is its words and signs: `C++` is not `C#`, `-5 %` not `+5 %`, and a text of emoji is one. Case, white
space, the punctuation of sentences and the form of Unicode make no difference. Likeness is the Jaccard index
of the sets of adjacent pairs.
"""

import itertools
import math
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

# Two requests in different splits are near-duplicates from this likeness on. A sentence of 17 words that
# changes
# two of them reaches 0.6; the most alike of v1's splits reach 0.40.
NEAR_DUPLICATE = 0.6
PUNCTUATION = ".,:;!?…'\"`´“”„‘’‚«»‹›()\\[\\]{}_·•¿¡—–-"
SIGNS = re.compile(rf"[^\W_]+|[-−–](?=\d)|[^\w\s{PUNCTUATION}]")
MANY = 2000  # texts from which a bar is shown
Shingle = tuple[str, ...]
Item = TypeVar("Item")


def words(text: str) -> list[str]:
    """Lower-case words, or the text itself where it has none."""
    return re.findall(r"\w+", text.lower()) or [text.strip()]


def signs(text: str) -> list[str]:
    """Words and signs in lower case, or the text itself where it is punctuation alone."""
    return SIGNS.findall(unicodedata.normalize("NFC", text).lower()) or [text.strip()]


def shingles(text: str) -> frozenset[Shingle]:
    """The adjacent pairs of a text's words and signs; its one word where it has no pair."""
    own = signs(text)
    return frozenset(itertools.pairwise(own)) or frozenset({(own[0],)})


def compared(items: Sequence[Item]) -> Iterable[Item]:
    """`items`, with a progress bar on a terminal where they are many."""
    console = Console(stderr=True)
    quiet = len(items) < MANY or not console.is_terminal
    return track(items, "comparing requests", console=console, transient=True, disable=quiet)


class Likeness:
    """Texts that were added, to find those that another text is nearly a copy of.

    Of two sets of which a share `limit` is common, one's rarest few members must hold one of the other's
    (prefix filtering; Chaudhuri, Ganti and Kaushik 2006). So a greeting that all texts begin with costs
    nothing, provided that `corpus`, the texts to come, says what is common.
    """

    def __init__(self, corpus: Iterable[str] = (), limit: float = NEAR_DUPLICATE) -> None:
        self._limit = limit
        self._frequency = Counter(shingle for text in corpus for shingle in shingles(text))
        self._sizes = array("I")
        self._texts_of: dict[Shingle, array[int]] = defaultdict(lambda: array("I"))
        self._rare: set[Shingle] = set()

    @property
    def size(self) -> int:
        return len(self._sizes)

    def near(self, text: str) -> list[tuple[int, float]]:
        """Number in the order of `add`, and likeness, of each text that is at least `limit` like this one."""
        own = shingles(text)
        if self._rare.isdisjoint(self._rarest(own)):
            return []
        holding = [np.frombuffer(self._texts_of[each], np.uint32) for each in own if each in self._texts_of]
        shared = np.bincount(np.concatenate(holding), minlength=len(self._sizes))
        likeness = shared / (len(own) + np.frombuffer(self._sizes, np.uint32) - shared)
        return [(other, float(likeness[other])) for other in np.flatnonzero(likeness >= self._limit).tolist()]

    def nearest(self, text: str) -> tuple[int, float] | None:
        """The one of :meth:`near` that is most like the text, the first of several."""
        return max(self.near(text), key=lambda pair: pair[1], default=None)

    def add(self, text: str) -> None:
        own = shingles(text)
        for shingle in own:
            self._texts_of[shingle].append(len(self._sizes))
        self._rare.update(self._rarest(own))
        self._sizes.append(len(own))

    def _rarest(self, own: frozenset[Shingle]) -> list[Shingle]:
        """So many that a set without one of them misses the limit."""
        count = len(own) - math.ceil(self._limit * len(own) - 1e-9) + 1
        return sorted(own, key=lambda each: (self._frequency[each], each))[:count]
