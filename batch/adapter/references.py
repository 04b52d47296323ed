"""Where a file is that a recipe or a bundle names by a relative path, from wherever a command is started."""

from collections.abc import Callable
from pathlib import Path


def find_upwards(
    reference: str, near: Path | None = None, wanted: Callable[[Path], bool] = Path.is_file
) -> Path | None:
    """`reference` under the current directory, else under the folders above `near`, the nearest first; None
    where nothing there is `wanted`.
    """
    roots = (Path(), *(near.resolve().parents if near else ()))
    return next((root / reference for root in roots if wanted(root / reference)), None)
