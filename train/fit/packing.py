"""Rows of a batch behind one copy of their common prompt.

Every row starts with the same instructions, some 500 tokens, in front of some 100 of its own. Padded batches
compute them once a row; here they stand once in front of all rows, and a mask lets each row see them and
itself, at the positions that it has alone. The loss and its gradient are those of the padded batch
(`tests/train/fit/test_packing.py`), but that the rows share the instructions' LoRA dropout.
"""

from collections.abc import Mapping, Sequence

import torch
from transformers import PretrainedConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from train.examples import IGNORED


class Collator:
    """A batch from rows of `input_ids` and `labels`: packed where the model can read that and it is cheaper,
    else padded.
    """

    def __init__(self, config: PretrainedConfig, pad_id: int) -> None:
        self._packs = understands_packs(config)
        self._padded = DataCollatorForLanguageModeling(pad_token_id=pad_id)

    def __call__(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        sizes = [len(example["input_ids"]) for example in examples]
        packed = sum(sizes) - (len(sizes) - 1) * shared_tokens(examples)
        if self._packs and packed**2 <= len(sizes) * max(sizes) ** 2:  # attention is quadratic in the length
            return pack(examples)
        return self._padded(examples)  # type: ignore[no-any-return]


def understands_packs(config: PretrainedConfig) -> bool:
    """Whether every layer attends to all that a mask ``[1, 1, L, L]`` allows: no sliding window, no recurrent
    state, and the attention that takes a mask of booleans."""
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return config._attn_implementation == "sdpa" and set(layers) == {"full_attention"} and not sliding


def shared_tokens(examples: Sequence[Mapping[str, Sequence[int]]]) -> int:
    """How many first tokens the rows have in common. A row's own part starts with a token that is not
    learned: its predecessor does not stand right in front of it."""
    ids = [example["input_ids"] for example in examples]
    alike = next(
        (i for i, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1), min(map(len, ids))
    )
    learned = (
        next((i for i, label in enumerate(e["labels"]) if label != IGNORED), len(e["labels"]))
        for e in examples
    )
    return min(alike, max(min(learned) - 1, 0))


def pack(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """One sequence of all rows: `input_ids`, `labels`, `position_ids` ``[1, L]`` and a bool `attention_mask`
    ``[1, 1, L, L]``.
    """
    rows = [list(example["input_ids"]) for example in examples]
    labels = [list(example["labels"]) for example in examples]
    shared = shared_tokens(examples)
    ids, wanted, positions, owners = rows[0][:shared], [IGNORED] * shared, list(range(shared)), [-1] * shared
    for owner, (row, own) in enumerate(zip(rows, labels, strict=True)):
        ids += row[shared:]
        wanted += own[shared:]
        positions += range(shared, len(row))
        owners += [owner] * (len(row) - shared)
    owner_of = torch.tensor(owners)
    visible = (owner_of == -1) | (owner_of == owner_of[:, None])
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([wanted]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": visible.tril()[None, None],
    }
