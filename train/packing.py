"""Rows of a batch behind one copy of their common prompt.

Every row starts with the same instructions, some 500 tokens, in front of some 100 of its own. Padded batches compute
them once a row; here they stand once in front of all rows, and a mask lets each row see them and itself, at the
positions that it has alone. The loss and its gradient are those of the padded batch (`tests/test_packing.py`).
"""

from collections.abc import Mapping, Sequence

import torch

IGNORED = -100  # label of a token that is not learned


def pack(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """One sequence of all rows: `input_ids`, `labels`, `position_ids` ``[1, L]`` and a bool `attention_mask` ``[1, 1, L, L]``."""
    rows = [list(example["input_ids"]) for example in examples]
    labels = [list(example["labels"]) for example in examples]
    # A row's own part starts with a token that is not learned: its predecessor is not in front of it.
    unlearned = min(next((i for i, label in enumerate(own) if label != IGNORED), len(own)) for own in labels)
    alike = next((i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows)))
    shared = min(alike, max(unlearned - 1, 0))
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
