"""Rows that an adapter was trained on, or nearly: it is better on those, and surer, than on any others."""

from collections.abc import Mapping, Sequence

from batch.adapter.bundle import Bundle
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
    try:
        trained = load_rows(split_path(bundle, "train"), bundle.contract)
    except DatasetError:
        return None
    limit = bundle.manifest.get("recipe", {}).get("data", {}).get("likeness", NEAR_DUPLICATE)
    return seen_in(trained, rows, limit)


def refuse_seen(bundle: Bundle, rows: Sequence[Row], remedy: str) -> bool:
    """Raises `DatasetError` where the bundle was trained on some of the rows, or nearly; False where its
    training rows are not here.
    """
    if seen := seen_by(bundle, rows):
        raise DatasetError(
            f"{len(seen)} of {len(rows)} requests are those that adapter {bundle.digest[:12]} was trained "
            f"on, or nearly, the first at {seen[0].where}; {remedy}"
        )
    return seen is not None


def seen_in(trained: Sequence[Row], rows: Sequence[Row], limit: float = NEAR_DUPLICATE) -> list[Row]:
    """Those of `rows` that are nearly one of `trained`."""
    known = Likeness((row.request for row in (*trained, *rows)), limit)
    for row in trained:
        known.add(row.request)
    return [row for row in rows if known.nearest(row.request)]
