"""How alike two texts are, and which of many are nearly the same.

A text is its words and signs: `C++` is not `C#`, `-5 %` not `+5 %`, and a text of emoji is one; in a script
without spaces, such as Chinese, its characters. A vowel sign, as in Hindi, is a part of its word. Case, white
space, the punctuation of sentences and the form of Unicode make no difference. Likeness is the Jaccard index
of the sets of adjacent pairs.
"""

import itertools
import math
import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from batch.contract.phrases import UNSPACED

# Two requests in different splits are near-duplicates from this likeness on. A sentence of 17 words that
# changes
# two of them reaches 0.6; the most alike of v1's splits reach 0.40.
NEAR_DUPLICATE = 0.6
PUNCTUATION = ".,:;!?…'\"`´“”„‘’‚«»‹›()\\[\\]{}_·•¿¡—–-"
# Signs on letters (no `\w`) and joiners between them; of Unicode's first plane, where the living scripts are.
MARKS = "\u200c\u200d" + "".join(
    sign for sign in map(chr, range(1 << 16)) if unicodedata.category(sign)[0] == "M"
)
SIGNS = re.compile(rf"[^\W_](?:[^\W_]|[{MARKS}])*|[-−–](?=\d)|[^\w\s{PUNCTUATION}]")
_ONE, _REST = f"[{UNSPACED}]", rf"(?:(?![{UNSPACED}])[\w{MARKS}])"
# A word, or in a script without spaces a character; and the same without words of one letter.
WORDS, LONG_WORDS = (rf"{_ONE}|(?!{_ONE})\w{_REST}{times}" for times in "*+")
# The same with two neighbouring characters, as most words of such scripts have, or one that is alone.
PAIRS = re.compile(rf"(?=({_ONE}{{2}})){_ONE}|(?<!{_ONE}){_ONE}|(?!{_ONE})(?:{WORDS})")
ALONE = re.compile(f"[{UNSPACED}]|[^{UNSPACED}]+")
MANY = 2000  # texts from which a bar is shown
WORD = 64  # bits; of a pair that one text in so many holds, a bit in each text is shorter than a list of them
Shingle = tuple[str, ...]
Numbers: TypeAlias = npt.NDArray[np.int64]
Item = TypeVar("Item")


def composed(text: str) -> str:
    """In lower case and in one form of Unicode."""
    return unicodedata.normalize("NFC", text).lower()


def words(text: str) -> list[str]:
    """Lower-case words (in a script without spaces pairs of characters), or the text itself where it has
    none.
    """
    return [found[1] or found[0] for found in PAIRS.finditer(composed(text))] or [text.strip()]


def signs(text: str) -> list[str]:
    """Words and signs in lower case, or the text itself where it is punctuation alone."""
    found = SIGNS.findall(composed(text)) or [text.strip()]
    if text.isascii():
        return found
    return [part for sign in found for part in ALONE.findall(sign)] or found


def shingles(text: str) -> frozenset[Shingle]:
    """The adjacent pairs of a text's words and signs; its one word where it has no pair."""
    own = signs(text)
    return frozenset(itertools.pairwise(own)) or frozenset({(own[0],)})


def compared(items: Sequence[Item]) -> Iterable[Item]:
    """`items`, with a progress bar on a terminal where they are many."""
    console = Console(stderr=True)
    quiet = len(items) < MANY or not console.is_terminal
    return track(items, "comparing requests", console=console, transient=True, disable=quiet)


def alike(texts: Sequence[str]) -> list[list[int]]:
    """The numbers of the texts in groups, of which each holds all that are nearly alike."""
    group_of = np.arange(len(texts))
    known = Likeness(texts)
    for number, text in enumerate(compared(texts)):
        near = group_of[known.twins(text)]
        while len(near):  # of all groups: two that are unlike may have a third in common
            group_of[group_of == near[0]] = number
            near = near[near != near[0]]
        known.add(text)
    groups: dict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(group_of.tolist()):
        groups[group].append(number)
    return list(groups.values())


class Likeness:
    """Texts that were added, to find those that another text is nearly a copy of.

    Of two sets of which a share `limit` is common, one's rarest members must hold some of the other's (after
    Chaudhuri, Ganti and Kaushik 2006): most texts are told apart by those, of which few texts have any. What
    is left is counted, by lists of the texts that hold a pair, and for pairs that many hold by a bit in each
    text. So a greeting and a signature that all texts have cost little, provided that `corpus`, the texts to
    come, says what is common.
    """

    def __init__(self, corpus: Iterable[str] = (), limit: float = NEAR_DUPLICATE) -> None:
        self._limit = limit
        # Pairs are numbered, the rarest first; those that the corpus does not hold from -1 down.
        self._numbers: dict[Shingle, int] = {}
        read = {text: self._numbered(text) for text in corpus}
        frequency = np.bincount(np.concatenate([*read.values(), np.zeros(0, np.int64)]) + len(self._numbers))
        rank = np.empty_like(frequency)
        rank[np.argsort(frequency, kind="stable")] = np.arange(len(frequency))
        self._read = {text: np.sort(rank[numbers + len(rank)]) for text, numbers in read.items()}
        self._numbers = {pair: int(rank[number + len(rank)]) for pair, number in self._numbers.items()}
        common = np.count_nonzero(frequency * WORD > max(len(read), WORD))
        self._common = len(rank) - common  # from this number on a pair is a bit
        self._words = -(-common // WORD)
        self._bits = array("Q")  # of each text so many words
        self._sizes = array("I")
        self._texts_of: dict[int, array[int]] = defaultdict(lambda: array("I"))

    @classmethod
    def of(
        cls, texts: Sequence[str], limit: float = NEAR_DUPLICATE, others: Iterable[str] = ()
    ) -> "Likeness":
        """With these texts added; `others`, to be compared with them, say what is common too."""
        known = cls((*texts, *others), limit)
        for text in texts:
            known.add(text)
        return known

    @property
    def size(self) -> int:
        return len(self._sizes)

    def twins(self, text: str) -> Numbers:
        """Numbers in the order of `add` of the texts that are at least `limit` like this one."""
        return np.flatnonzero(self._likeness(text) >= self._limit)

    def near(self, text: str) -> list[tuple[int, float]]:
        """The same, each with its likeness."""
        likeness = self._likeness(text)
        return [(other, float(likeness[other])) for other in np.flatnonzero(likeness >= self._limit).tolist()]

    def nearest(self, text: str) -> tuple[int, float] | None:
        """The one of :meth:`near` that is most like the text, the first of several."""
        likeness = self._likeness(text)
        best = int(likeness.argmax()) if len(likeness) else 0
        return (best, float(likeness[best])) if len(likeness) and likeness[best] >= self._limit else None

    def _likeness(self, text: str) -> npt.NDArray[np.float64]:
        """How like the text each of those added is; of none, where none can reach the limit."""
        own = self._numbers_of(text)
        listed = int(np.searchsorted(own, self._common))
        least = math.ceil(self._limit * len(own) - 1e-9)  # members that a text as like as that shares
        rarest = min(listed, len(own) - least + max(1, len(own) // 10))
        needed = least - (len(own) - rarest)  # of the rarest, though it shares all others
        if self._shared(own[:rarest]).max(initial=0) < needed:
            return np.zeros(0)
        shared = self._shared(own[:listed])
        bits = np.frombuffer(self._bits, np.uint64).reshape(self.size, self._words)
        for word, mine in enumerate(self._bits_of(own)):
            if mine:
                shared += np.bitwise_count(bits[:, word] & mine)
        return shared / (len(own) + np.frombuffer(self._sizes, np.uint32) - shared)

    def _shared(self, listed: Numbers) -> Numbers:
        """How many of these pairs each of the texts holds."""
        lists = [self._texts_of[each] for each in listed.tolist() if each in self._texts_of]
        return np.bincount(np.frombuffer(b"".join(lists), np.uint32), minlength=self.size)

    def add(self, text: str) -> None:
        own = self._numbers_of(text)
        for number in own[own < self._common].tolist():
            self._texts_of[number].append(self.size)
        self._bits.frombytes(self._bits_of(own).tobytes())
        self._sizes.append(len(own))

    def _numbers_of(self, text: str) -> Numbers:
        """The pairs of a text by number, the rarest first."""
        read = self._read.get(text)
        return np.sort(self._numbered(text)) if read is None else read

    def _numbered(self, text: str) -> Numbers:
        known = self._numbers
        own = shingles(text)
        numbers = (known.setdefault(pair, -1 - len(known)) for pair in own)
        return np.fromiter(numbers, np.int64, len(own))

    def _bits_of(self, own: Numbers) -> npt.NDArray[np.uint64]:
        """The common pairs that a text holds, in words of 64."""
        words = np.zeros(self._words, np.uint64)
        places = (own[own >= self._common] - self._common).astype(np.uint64)
        np.bitwise_or.at(words, places // np.uint64(WORD), np.uint64(1) << places % np.uint64(WORD))
        return words
