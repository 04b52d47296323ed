"""Labelled requests as token ids: what training reads."""

from collections.abc import Iterable, Mapping, Sequence

from batch.adapter.renderer import Renderer
from batch.errors import DatasetError
from train.dataset import Row

IGNORED = -100  # label of a token that is not learned, as torch has it


def encode(rows: Iterable[Row], renderer: Renderer) -> list[dict[str, list[int]]]:
    """Token `input_ids` and `labels` of each row; labels are IGNORED but on the answer and its end of turn.

    Nothing is cut: a request of more tokens than the contract accepts raises `DatasetError`.
    """
    examples = []
    for row in rows:
        prompt, completion = renderer.encode_example(row.request, dict(row.answer))
        _check_length(row, len(prompt) - len(renderer.prompt([])), renderer)
        examples.append({"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion})
    return examples


def check_lengths(rows: Sequence[Row], renderer: Renderer) -> None:
    """Raises `DatasetError` for a request of more tokens than the contract accepts."""
    for row, ids in zip(rows, renderer.encode_requests([row.request for row in rows]), strict=True):
        _check_length(row, len(ids), renderer)


def _check_length(row: Row, size: int, renderer: Renderer) -> None:
    if size > (limit := renderer.contract.max_tokens):
        raise DatasetError(
            f"{row.where}: the request has {size} tokens, the contract accepts {limit}; shorten it"
        )


def count_tokens(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, int]:
    """What a pass over the training rows holds: rows, tokens, and the tokens that are learned."""
    return {
        "rows": len(examples),
        "all": sum(len(example["input_ids"]) for example in examples),
        "supervised": sum(label != IGNORED for example in examples for label in example["labels"]),
    }
