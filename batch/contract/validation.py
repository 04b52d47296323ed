"""Checks of values read from a contract file. Each failure is a `ContractError` that names the place."""

from collections.abc import Iterable, Mapping
from typing import Any

from batch.contract.json_text import compact_json
from batch.errors import BatchRouteError, ContractError, nearest

NO_KEYS: frozenset[str] = frozenset()


def table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ContractError(f"{where} must be a table, not {value!r}")
    return value


def keys(
    value: Any, where: str, required: Iterable[str] = NO_KEYS, optional: Iterable[str] = NO_KEYS
) -> Mapping[str, Any]:
    """`value` as a table of known keys; an unknown one names the nearest known one."""
    content = table(value, where)
    known = sorted({*required, *optional})
    for key in content:
        if key not in known:
            raise ContractError(f"unknown key {key!r} in {where}{nearest(key, known)}")
    for key in sorted(set(required) - set(content)):
        raise ContractError(f"missing key {key!r} in {where}")
    return content


def items(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ContractError(f"{where} must be a list that is not empty, not {value!r}")
    return list(value)


def text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ContractError(f"{where} must be a text, not {value!r}")
    return value


def texts(value: Any, where: str) -> list[str]:
    """`value` as a list of texts; it may be empty."""
    if not isinstance(value, list | tuple):
        raise ContractError(f"{where} must be a list of texts, not {value!r}")
    return [text(each, where) for each in value]


def storable(value: Any, where: str, refusal: type[BatchRouteError] = ContractError) -> None:
    """Refuse what no JSON can keep, neither a bundle's `contract.json` nor an answer: TOML has dates and NaN,
    Python reads NaN in JSON, Parquet has decimals and bytes.
    """
    try:
        compact_json(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise refusal(
            f"{where} holds a value that JSON does not have, {str(value)[:100]}: {error}; write a text or a "
            "number"
        ) from error


def positive(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ContractError(f"{where} must be a positive whole number, not {value!r}")
    return value


def flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ContractError(f"{where} must be true or false, not {value!r}")
    return value


def among(value: Any, values: Iterable[Any]) -> bool:
    """Whether `value` is one of `values`, of the same type: 1 is not true."""
    return any(type(value) is type(known) and value == known for known in values)
