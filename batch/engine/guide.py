"""Guided decoding over a vocabulary: which tokens an answer may go on with, and where each leads.

    Automaton (bytes) + TokenTree (a vocabulary) ──► Guide: state × token → state, state → mask

A state's mask is found once, by walking all tokens through the automaton at the same time, and kept; so are
the steps from a state with few legal tokens: from one inside a text there are as many as the vocabulary has
tokens, so those are walked anew. What is left to do in a step of the engine is to copy a mask for each row.
xgrammar, which vLLM uses, takes 0.1 to 1.3 ms a row inside a text for it (152 k tokens), and seconds to
compile a bounded one: tests/bench/RESULTS.md.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from batch.engine.automaton import DEAD, Automaton

Array = np.ndarray[Any, Any]
ENDED = -2  # the state behind a stop token
SPARSE = 1 / 16  # share of a mask's words below which only those that allow a token are kept
Mask = tuple[Array | slice, Array]  # which words it has, and they; a slice where many allow a token


class TokenTree:
    """A vocabulary as the tree of its tokens' bytes, level by level, so that all are walked at the same time.

    `texts` has the bytes of each token, none for one that no answer may hold (a control token, an added one
    like `<think>`). `size` is the width of the model's logits, which may be more. Node 0 is the root, node i
    has the children `first[i]` to `last[i]`, and `bytes[i]` leads to it.
    """

    def __init__(self, texts: Sequence[bytes], size: int) -> None:
        self.size = size
        self.words = (size + 31) // 32  # of a mask: int32 with a bit for each token, the lowest first
        self.texts = texts[:size]
        ids = sorted((i for i, text in enumerate(self.texts) if text), key=self.texts.__getitem__)
        self.ids = np.array(ids, dtype=np.int32)
        self.nodes: Array = np.zeros(len(ids), dtype=np.int32)  # the node where each of `ids` ends
        lengths = np.array([len(texts[i]) for i in ids], dtype=np.int32)
        joined = np.frombuffer(b"".join(texts[i] for i in ids), dtype=np.uint8)
        starts = np.cumsum(lengths) - lengths
        levels: list[Array] = [np.zeros(1, np.uint8)]
        parents: list[Array] = [np.full(1, -1)]
        size_so_far = 1
        tokens: Array = np.arange(len(ids))
        node: Array = np.zeros(len(ids), dtype=np.int64)
        for place in range(int(lengths.max(initial=0))):
            reaches = lengths[tokens] > place
            tokens, node = tokens[reaches], node[reaches]  # sorted: equal beginnings lie side by side
            byte = joined[starts[tokens] + place]
            opens = np.append(True, (node[1:] != node[:-1]) | (byte[1:] != byte[:-1]))
            levels.append(byte[opens])
            parents.append(node[opens])
            node = size_so_far - 1 + np.cumsum(opens)
            size_so_far += len(levels[-1])
            ends = lengths[tokens] == place + 1
            self.nodes[tokens[ends]] = node[ends]
        self.bytes = np.concatenate(levels)
        numbers = np.arange(size_so_far)
        above = np.concatenate(parents)
        self.first: Any = np.searchsorted(above, numbers, side="left")
        self.last: Any = np.searchsorted(above, numbers, side="right")


class Guide:
    """An expression over a vocabulary. State 0 is the start of an answer.

    In the states of `ends` an answer ends whatever may follow: only a stop token is legal.
    """

    def __init__(
        self,
        automaton: Automaton,
        tokens: TokenTree,
        stop_ids: Iterable[int],
        ends: Collection[int] = frozenset(),
    ) -> None:
        self._automaton = automaton
        self._tokens = tokens
        self._stop_ids = frozenset(stop_ids)
        self._ends = ends
        self._classes = np.array(automaton.classes, dtype=np.uint8)
        self._steps: dict[tuple[int, int], int] = {}
        self._masks: dict[int, Mask] = {}

    def step(self, state: int, token: int) -> int:
        """The state behind one more token; `DEAD` where it is not legal, `ENDED` behind a stop token."""
        found = self._steps.get((state, token))
        if found is None:
            found = self._step(state, token)
            mask = self._masks.get(state)
            if mask and not isinstance(mask[0], slice) and found != DEAD:
                self._steps[state, token] = found
        return found

    def _step(self, state: int, token: int) -> int:
        if state < 0:
            return DEAD
        if state in self._ends or token in self._stop_ids:
            return ENDED if token in self._stop_ids and self._may_end(state) else DEAD
        text = self._tokens.texts[token] if 0 <= token < len(self._tokens.texts) else b""
        return self._automaton.walk(state, text) if text else DEAD

    def _may_end(self, state: int) -> bool:
        return state in self._ends or bool(self._automaton.final[state])

    def fill(self, state: int, row: Array) -> None:
        """Write the mask of a state into `row`, ``[words]`` int32."""
        mask = self._masks.get(state)
        if mask is None:
            mask = self._masks[state] = self._mask(state)
        words, values = mask
        if not isinstance(words, slice):
            row.fill(0)
        row[words] = values

    def _mask(self, state: int) -> Mask:
        bits: Array = np.zeros(self._tokens.words * 32, dtype=bool)
        bits[self.legal(state)] = True
        values = np.packbits(bits, bitorder="little").view(np.int32)
        (words,) = values.nonzero()
        return (words, values[words]) if len(words) < SPARSE * len(values) else (slice(None), values)

    def legal(self, state: int) -> Array:
        """Ids of the tokens that may follow, int32, in no order."""
        if state < 0:
            return np.empty(0, dtype=np.int32)
        tree, table = self._tokens, self._automaton.table
        alive: Array = np.zeros(len(tree.bytes), dtype=bool)
        nodes: Array = np.zeros(0 if state in self._ends else 1, dtype=np.int64)
        states: Array = np.full(len(nodes), state)
        while len(nodes):
            counts = tree.last[nodes] - tree.first[nodes]
            before = np.cumsum(counts) - counts
            children = np.repeat(tree.first[nodes] - before, counts) + np.arange(counts.sum())
            reached = table[np.repeat(states, counts), self._classes[tree.bytes[children]]]
            kept = (reached != DEAD).nonzero()[0]
            nodes, states = children[kept], reached[kept]
            alive[nodes] = True
        stops = self._stop_ids if self._may_end(state) else ()
        legal: Array = np.concatenate([tree.ids[alive[tree.nodes]], np.fromiter(stops, np.int32)])
        return legal
