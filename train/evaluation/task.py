"""What two contracts must share for answers of theirs to be compared."""

from typing import Any

from batch.contract.contract import Contract


def task(contract: Contract) -> dict[str, tuple[Any, ...]]:
    """Of each scored field its type and values."""
    return {field.name: (field.type, *field.values) for field in contract.scored_fields}
