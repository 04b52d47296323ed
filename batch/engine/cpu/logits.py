"""Logits of the tokens that a choice is between, and of no others.

vLLM multiplies a step's hidden states by the whole output layer before it asks for the grammar's mask, and of
a model with a large vocabulary that layer is a large part. Yet outside a free text a handful of tokens is
legal. Here the hidden states wait for the mask; a few logits are then so many sums of products.
"""

from typing import Any

import numpy as np
import torch
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from batch.engine.patches import plug

PRODUCTS = 1 << 20  # at a time: 4 MiB of float32


def install() -> None:
    """Put this in the place of vLLM's layer, for this process."""
    plug(LogitsProcessor, WaitingLogitsProcessor, made_for="0.32")


class Logits:
    """Of hidden states ``[tokens, hidden]``, computed where they are asked for."""

    def __init__(self, processor: Any, lm_head: Any, hidden: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._processor, self._lm_head, self._hidden, self._bias = processor, lm_head, hidden, bias

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._hidden), self._processor.org_vocab_size

    def __len__(self) -> int:
        return len(self._hidden)

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """All those of some rows, as vLLM has them: ``[rows, vocabulary]``."""
        return LogitsProcessor.forward(self._processor, self._lm_head, self._hidden[rows], self._bias)

    def of(self, rows: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        """Those of some tokens, each in its row, float32 ``[tokens]``: rounded less than bfloat16's."""
        step = max(1, PRODUCTS // self._hidden.shape[1])
        pairs = [(rows[at : at + step], tokens[at : at + step]) for at in range(0, len(rows), step)]
        logits = torch.cat([torch.zeros(0), *(self._products(*each) for each in pairs)])
        if self._bias is not None:
            logits += self._bias[tokens]
        if (cap := self._processor.soft_cap) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits * self._processor.scale

    def _products(self, rows: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        return (self._hidden[rows].float() * self._lm_head.weight[tokens].float()).sum(dim=1)


class WaitingLogitsProcessor(LogitsProcessor):  # type: ignore[misc,valid-type]
    """vLLM's, whose logits wait for the samplers of `sampling.py`."""

    def forward(
        self, lm_head: Any, hidden_states: torch.Tensor, embedding_bias: Any = None, skip_gather: bool = False
    ) -> Any:
        # An adapter of the output layer calls this as its own method: it adds to the logits of a whole step.
        waits = isinstance(self, WaitingLogitsProcessor) and not (skip_gather or self.logits_as_input)
        if waits and isinstance(getattr(lm_head, "quant_method", None), UnquantizedEmbeddingMethod):
            return Logits(self, lm_head, hidden_states, embedding_bias)
        return LogitsProcessor.forward(self, lm_head, hidden_states, embedding_bias, skip_gather)
