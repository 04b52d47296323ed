"""A regular expression as a deterministic automaton over bytes: `re` parses it, what follows is textbook.

    expression ──re's parser──► NFA over byte ranges ──subset construction──► table [states, classes]

A code point outside ASCII becomes its UTF-8 bytes, so an automaton may stop in the middle of a character and
go on with the next token. Bytes that no edge tells apart share a column of the table.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import numpy as np

from batch.errors import ContractError

DEAD = -1
LAST_CODE_POINT = 0x10FFFF
UTF8_LENGTHS = ((0x7F, 1), (0x7FF, 2), (0xFFFF, 3), (LAST_CODE_POINT, 4))
Ranges = list[tuple[int, int]]  # of code points or bytes, both ends included


class Automaton:
    """`table[state, classes[byte]]` is the next state, `DEAD` where none is; state 0 is the start.

    From each state some final one can be reached: what is not dead can still become a match.
    """

    def __init__(self, expression: str) -> None:
        """Raises `ContractError` where it is not regular (look-around, back references, anchors)."""
        nfa = _Nfa()
        end = nfa.add(parser.parse(expression), nfa.state())
        self.classes, width = nfa.byte_classes()
        first = nfa.closure({0})
        index, rows, subsets = {first: 0}, [], [first]
        for subset in subsets:  # grows as it is read
            targets: dict[int, set[int]] = {}
            for low, high, target in itertools.chain.from_iterable(nfa.edges[state] for state in subset):
                for column in range(self.classes[low], self.classes[high] + 1):
                    targets.setdefault(column, set()).add(target)
            row: np.ndarray = np.full(width, DEAD, dtype=np.int32)
            for column, reached in targets.items():
                following = nfa.closure(reached)
                if following not in index:
                    index[following] = len(subsets)
                    subsets.append(following)
                row[column] = index[following]
            rows.append(row)
        self.table: np.ndarray = np.stack(rows)
        self.final: np.ndarray = np.array([end in subset for subset in subsets])

    def behind(self, beginning: "Automaton") -> frozenset[int]:
        """The states that a match of `beginning` leads to, and all that follow them."""
        pairs, found = [(0, 0)], set()
        seen = {(0, 0)}
        for ours, theirs in pairs:  # grows as it is read
            if beginning.final[theirs]:
                found.add(ours)
                continue
            after = zip(self._row(ours), beginning._row(theirs), strict=True)
            new_pairs = {pair for pair in after if DEAD not in pair} - seen
            seen |= new_pairs
            pairs += new_pairs
        states = list(found)
        for state in states:
            new = set(self.table[state].tolist()) - found - {DEAD}
            found |= new
            states += new
        return frozenset(found)

    def _row(self, state: int) -> list[int]:
        """The next state for each byte."""
        return self.table[state][self.classes].tolist()  # type: ignore[no-any-return]

    def walk(self, state: int, text: bytes) -> int:
        """The state behind `text`."""
        for byte in text:
            if state == DEAD:
                break
            state = int(self.table[state, self.classes[byte]])
        return state


class _Nfa:
    """States with edges over byte ranges and edges over nothing."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[int, int, int]]] = []  # (lowest byte, highest byte, target)
        self._empty: list[list[int]] = []
        self._closures: dict[frozenset[int], frozenset[int]] = {}

    def state(self) -> int:
        self.edges.append([])
        self._empty.append([])
        return len(self.edges) - 1

    def add(self, parsed: Iterable[tuple[Any, Any]], start: int) -> int:
        """Build what the parser found from `start` on; returns the state behind it."""
        for op, argument in parsed:
            start = self._add(op, argument, start)
        return start

    def _add(self, op: Any, argument: Any, start: int) -> int:
        if op in (ops.LITERAL, ops.NOT_LITERAL, ops.IN):
            return self._characters(_ranges([(op, argument)] if op != ops.IN else argument), start)
        if op == ops.SUBPATTERN:
            return self.add(argument[-1], start)
        if op == ops.BRANCH:
            end = self.state()
            for branch in argument[1]:
                self._empty[self.add(branch, start)].append(end)
            return end
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            least, most, body = argument
            return self._repeat(least, most, body, start)
        raise ContractError(
            f"guided decoding does not support {str(op).lower()} in an expression; leave it out"
        )

    def _repeat(self, least: int, most: int, body: Any, start: int) -> int:
        for _ in range(least):
            start = self.add(body, start)
        if most == ops.MAXREPEAT:
            loop = self.state()
            self._empty[start].append(loop)
            self._empty[self.add(body, loop)].append(loop)
            return loop
        end = self.state()
        for _ in range(most - least):
            self._empty[start].append(end)
            start = self.add(body, start)
        self._empty[start].append(end)
        return end

    def _characters(self, ranges: Ranges, start: int) -> int:
        end = self.state()
        for low, high in ranges:
            for sequence in utf8_ranges(low, high):
                state = start
                for byte_low, byte_high in sequence[:-1]:
                    following = self.state()
                    self.edges[state].append((byte_low, byte_high, following))
                    state = following
                self.edges[state].append((*sequence[-1], end))
        return end

    def closure(self, states: set[int]) -> frozenset[int]:
        """These and what edges over nothing lead to, but for those that only lead on."""
        key = frozenset(states)
        if key not in self._closures:
            found, stack = set(states), list(states)
            while stack:
                new = [target for target in self._empty[stack.pop()] if target not in found]
                found.update(new)
                stack += new
            self._closures[key] = frozenset(found)
        return self._closures[key]

    def byte_classes(self) -> tuple[list[int], int]:
        """The class of each byte, and how many there are: bytes next to each other that no edge parts."""
        edges = list(itertools.chain.from_iterable(self.edges))
        starts = {low for low, _, _ in edges} | {high + 1 for _, high, _ in edges} - {256}
        classes = list(itertools.accumulate((byte in starts for byte in range(256)), initial=0))[1:]
        return classes, classes[-1] + 1


def _ranges(items: Sequence[tuple[Any, Any]]) -> Ranges:
    """The code points of a character class, in order."""
    found: Ranges = []
    negated = False
    for op, argument in items:
        if op in (ops.NEGATE, ops.NOT_LITERAL):
            negated = True
        if op in (ops.LITERAL, ops.NOT_LITERAL):
            found.append((argument, argument))
        elif op == ops.RANGE:
            found.append(argument)
        elif op != ops.NEGATE:
            raise ContractError(
                f"guided decoding does not support {str(op).lower()} in a class; leave it out"
            )
    if not negated:
        return found
    edges = itertools.chain.from_iterable((low - 1, high + 1) for low, high in sorted(found))
    bounds = iter([0, *edges, LAST_CODE_POINT])
    return [(low, high) for low, high in zip(bounds, bounds, strict=True) if low <= high]


def utf8_ranges(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """Sequences of byte ranges that are the UTF-8 of the code points from `low` to `high`; surrogates have
    none."""
    for bottom, top in ((0, 0xD7FF), (0xE000, LAST_CODE_POINT)):
        least, most = max(low, bottom), min(high, top)
        for limit, length in UTF8_LENGTHS:
            if least <= min(most, limit):
                yield from _split(chr(least).encode(), chr(min(most, limit)).encode(), length)
                least = limit + 1


def _split(low: bytes, high: bytes, length: int) -> Iterator[list[tuple[int, int]]]:
    """Byte ranges between two encodings of one length: parted until each byte is free of those before it."""
    first, last, free = low[0], high[0], [(0x80, 0xBF)] * (length - 1)
    least, most = b"\x80" * (length - 1), b"\xbf" * (length - 1)
    if first == last and length > 1:
        for rest in _split(low[1:], high[1:], length - 1):
            yield [(first, first), *rest]
        return
    if low[1:] != least:
        for rest in _split(low[1:], most, length - 1):
            yield [(first, first), *rest]
        first += 1
    tail = []
    if high[1:] != most:
        tail = [[(last, last), *rest] for rest in _split(least, high[1:], length - 1)]
        last -= 1
    if first <= last:
        yield [(first, last), *free]
    yield from tail
