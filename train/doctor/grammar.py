"""The grammar that the engine decodes under, asked by itself."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from batch.adapter.vocabulary import Vocabulary
from batch.engine.automaton import DEAD, Automaton
from batch.engine.guide import ENDED, Guide, TokenTree


class ServedGrammar:
    """Asks the grammar what it would allow. `vocabulary` is the model's, which may be wider than the
    tokenizer's.
    """

    def __init__(self, tokenizer: Path, expression: str, stop_id: int, vocabulary: int) -> None:
        tree = TokenTree(Vocabulary.read(tokenizer).table, vocabulary)
        self._guide = Guide(Automaton(expression), tree, [stop_id])
        self._vocabulary = vocabulary

    def refuses(self, ids: Sequence[int]) -> int | None:
        """Index of the first token of a whole answer, end of turn included, that the grammar forbids; None if
        none.
        """
        state = 0
        for index, token in enumerate(ids):
            state = self._guide.step(state, token)
            if state == DEAD:
                return index
        return None if state == ENDED else len(ids)

    def masks(self, ids: Sequence[int]) -> np.ndarray:
        """``[len(ids), vocabulary]``, true where a token is allowed in place of each of `ids`, given those
        before it; behind one that is not legal, and behind a finished answer, nothing is.
        """
        allowed: np.ndarray = np.zeros((len(ids), self._vocabulary), dtype=bool)
        state = 0
        for index, token in enumerate(ids):
            allowed[index, self._guide.legal(state)] = True
            state = self._guide.step(state, token)
        return allowed
