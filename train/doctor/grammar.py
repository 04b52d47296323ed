"""The grammar that the engine decodes under, compiled by the same library (xgrammar) from the same
expression.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xgrammar
from transformers import AutoTokenizer


class ServedGrammar:
    """Asks the grammar what it would allow. `vocabulary` is the model's, which may be wider than the
    tokenizer's.
    """

    def __init__(self, tokenizer: Path, expression: str, stop_id: int, vocabulary: int) -> None:
        info = xgrammar.TokenizerInfo.from_huggingface(
            AutoTokenizer.from_pretrained(tokenizer, local_files_only=True),
            vocab_size=vocabulary,
            stop_token_ids=[stop_id],
        )
        self._compiled = xgrammar.GrammarCompiler(info).compile_regex(expression)
        self._vocabulary = vocabulary

    def refuses(self, ids: Sequence[int]) -> int | None:
        """Index of the first token of a whole answer, end of turn included, that the grammar forbids; None if
        none.
        """
        matcher = xgrammar.GrammarMatcher(self._compiled)
        for index, token in enumerate(ids):
            if matcher.is_terminated() or not matcher.accept_token(token):
                return index
        return None if matcher.is_terminated() else len(ids)

    def masks(self, ids: Sequence[int]) -> np.ndarray:
        """``[len(ids), vocabulary]``, true where a token is allowed in place of each of `ids`, given those
        before it.
        """
        return self._walk(ids)[:-1]

    def allows_after(self, ids: Sequence[int]) -> np.ndarray:
        """``[vocabulary]``, true where a token may follow `ids`."""
        return self._walk(ids)[-1]  # type: ignore[no-any-return]

    def _walk(self, ids: Sequence[int]) -> np.ndarray:
        """The masks in front of each of `ids` and after the last; nothing is allowed behind a finished
        answer.
        """
        matcher = xgrammar.GrammarMatcher(self._compiled)
        words: np.ndarray = np.zeros((len(ids) + 1, (self._vocabulary + 31) // 32), dtype=np.int32)
        for index in range(len(ids) + 1):
            if not matcher.is_terminated():
                words[index] = -1  # where all is allowed, xgrammar writes nothing
                matcher.fill_next_token_bitmask(words, index)
            if index < len(ids) and (matcher.is_terminated() or not matcher.accept_token(ids[index])):
                raise ValueError(f"token {index} of the answer is not legal")
        bits: np.ndarray = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        return bits[:, : self._vocabulary].astype(bool)  # type: ignore[no-any-return]
