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
        _check([(row, len(prompt) - len(renderer.prompt([])))], renderer)
        examples.append({"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion})
    return examples


def check_lengths(rows: Sequence[Row], renderer: Renderer) -> None:
    """Raises `DatasetError` where requests have more tokens than the contract accepts."""
    encoded = renderer.encode_requests([row.request for row in rows])
    _check(list(zip(rows, map(len, encoded), strict=True)), renderer)


def _check(sizes: Sequence[tuple[Row, int]], renderer: Renderer) -> None:
    limit = renderer.contract.max_tokens
    if long := [(row, size) for row, size in sizes if size > limit]:
        (row, size), others = long[0], f", which {len(long)} requests exceed" if long[1:] else ""
        raise DatasetError(
            f"{row.where}: the request has {size} tokens, the contract accepts {limit}{others}; shorten it, "
            "or raise [input] max_tokens in the contract"
        )


def count_tokens(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, int]:
    """What a pass over the training rows holds: rows, tokens, and the tokens that are learned."""
    return {
        "rows": len(examples),
        "all": sum(len(example["input_ids"]) for example in examples),
        "supervised": sum(label != IGNORED for example in examples for label in example["labels"]),
    }
