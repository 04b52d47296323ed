"""The teacher of the mini base: a public sentence encoder, tuned to read the five facts off requests.

A model of a few million parameters learns from generated requests the words that they hold. The encoder has
read far more English: tuned on the same requests it reads them in other words as well, and says so for any
text, also for ones with random words in them, which no label exists for. What it reads there is what the base
learns to read (distillation with soft targets, Hinton et al. 2015).
"""

import itertools
import random
import re
from collections.abc import Iterator, Sequence

import rich.progress
import torch
from torch.nn import functional

from train.mini_base.lexicon import Vectors
from train.mini_base.requests import FACT_VALUES, Facts, Request

SIZES = [len(values) for values in FACT_VALUES.values()]


def one_hot(facts: Facts) -> torch.Tensor:
    """Facts as the probabilities of each fact's values, one after another, shape [sum(SIZES)]."""
    chosen = [values.index(getattr(facts, name)) for name, values in FACT_VALUES.items()]
    return torch.cat(
        [functional.one_hot(torch.tensor(i), size).float() for i, size in zip(chosen, SIZES, strict=True)]
    )


def cross_entropy(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Sum over the facts of the mean cross-entropy; both have shape [rows, sum(SIZES)], `wanted` holds
    probabilities.
    """
    parts = zip(logits.split(SIZES, dim=1), wanted.split(SIZES, dim=1), strict=True)
    return torch.stack([functional.cross_entropy(part, target) for part, target in parts]).sum()


class Teacher:
    """The encoder of `vectors` with a linear layer on its mean-pooled states; :meth:`tune` changes the
    encoder in place.
    """

    def __init__(self, vectors: Vectors, seed: int) -> None:
        torch.manual_seed(seed)
        self._vectors = vectors
        self._heads = torch.nn.Linear(vectors.states(["width"]).shape[1], sum(SIZES))

    def tune(self, stream: Iterator[Request], steps: int, rows: int = 48) -> None:
        """Train on `steps` batches of `rows` requests of the stream; the rate falls to zero."""
        groups = [
            {"params": list(self._heads.parameters()), "lr": 2e-3},
            {"params": list(self._vectors.trainable()), "lr": 1e-4},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 40) * (1 - step / steps)
        )
        for _ in rich.progress.track(range(steps), "tuning the teacher"):
            batch = list(itertools.islice(stream, rows))
            loss = cross_entropy(
                self._logits([r.text for r in batch]), torch.stack([one_hot(r.facts) for r in batch])
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> torch.Tensor:
        """Probabilities of each fact's values, shape [len(texts), sum(SIZES)]."""
        return torch.cat([part.softmax(dim=1) for part in self._logits(texts).split(SIZES, dim=1)], dim=1)

    def _logits(self, texts: Sequence[str]) -> torch.Tensor:
        states = self._vectors.states(texts)
        return self._heads(functional.layer_norm(states, states.shape[-1:]))  # type: ignore[no-any-return]


def reworded(text: str, words: Sequence[str], share: float, rng: random.Random) -> str:
    """`text` with about `share` of its words of four letters and more replaced by any of `words`, in the same
    case.
    """

    def other(match: re.Match[str]) -> str:
        if rng.random() >= share:
            return match[0]
        word = rng.choice(words)
        return word.capitalize() if match[0][0].isupper() else word

    return re.sub(r"[^\W\d_]{4,}", other, text)


def spliced(first: str, second: str) -> str:
    """The first half of one text's clauses and the second half of another's: a text with parts of the facts
    of both.
    """
    one, two = (re.split(r"(?<=[.,;:!?])\s+", text) for text in (first, second))
    return " ".join([*one[: (len(one) + 1) // 2], *two[len(two) // 2 :]])
