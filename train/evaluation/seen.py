"""Rows that an adapter was trained on, or nearly: it is better on those, and surer, than on any others."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from batch.adapter.bundle import Bundle
from batch.contract.contract import Contract
from batch.errors import DatasetError
from batch.storage.digest import file_digest
from train.dataset import Row, load_rows, split_path
from train.likeness import NEAR_DUPLICATE, Likeness


def seen_by(bundle: Bundle, rows: Sequence[Row]) -> list[Row] | None:
    """Those of a dataset's `rows` that the bundle was trained on, or nearly, as its `fit` measures it; None
    where its training rows are not here.
    """
    recorded = bundle.manifest.get("data", {}).get("train")
    if isinstance(recorded, Mapping) and recorded.get("sha256") == file_digest(rows[0].path):
        return list(rows)
    limit = bundle.manifest.get("recipe", {}).get("data", {}).get("likeness", NEAR_DUPLICATE)
    try:
        path = split_path(bundle, "train")
        return seen_in(_trained(path, bundle.manifest["data"]["train"]["sha256"], bundle.path, limit), rows)
    except DatasetError:
        return None


@functools.lru_cache(maxsize=4)  # 20,000 rows take seconds
def _trained(path: Path, sha256: str, bundle: Path, limit: float) -> Likeness:
    """`sha256` is that of the file at `path`: as long as it is the same, so is what was learnt from it."""
    return indexed(load_rows(path, Contract.load(bundle / "contract.json")), limit)


def seen_in(trained: Likeness, rows: Sequence[Row]) -> list[Row]:
    """Those of `rows` that are nearly one of the `trained`."""
    return [row for row in rows if trained.nearest(row.request)]


def indexed(rows: Sequence[Row], limit: float = NEAR_DUPLICATE) -> Likeness:
    return Likeness.of([row.request for row in rows], limit)
