"""Where in a nested column two types differ: its text would say so too late."""

from itertools import zip_longest

import pyarrow as pa
from pyarrow import types

from batch.storage.schema import conformed, is_list, unified

SHOWN = 80  # characters of a type
Difference = tuple[str, str, str]  # a path, and what is there in either


def differing(path: str, one: pa.DataType, other: pa.DataType) -> Difference:
    """The innermost place of a column at which the two have no type in common."""
    ours, theirs = children(one), children(other)
    if [name for name, _ in ours] == [name for name, _ in theirs]:
        for (name, kind), (_, second) in zip(ours, theirs, strict=True):
            if unified(kind, second) is None:
                return differing(path + name, kind, second)
    elif types.is_struct(one) and types.is_struct(other):
        return _names_differing(path, one, other)
    return path, str(one)[:SHOWN], str(other)[:SHOWN]


def _names_differing(path: str, one: pa.StructType, other: pa.StructType) -> Difference:
    pairs = enumerate(zip_longest(one.names, other.names))
    place, (ours, theirs) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    if ours is not None and ours not in other.names:
        return f"{path}.{ours}", str(one.field(place).type)[:SHOWN], "missing"
    if theirs is not None and theirs not in one.names:
        return f"{path}.{theirs}", "missing", str(other.field(place).type)[:SHOWN]
    child = f"a struct whose child {place} is"
    return path, f"{child} {ours!r}", f"{child} {theirs!r}"


def misfit(path: str, array: pa.Array, kind: pa.DataType) -> Difference:
    """The innermost place of a column whose values :func:`batch.storage.schema.conformed` refuses."""
    for values, (name, inner) in zip(_values(array), children(kind), strict=False):
        try:
            conformed(values, inner)
        except pa.ArrowInvalid:
            return misfit(path + name, values, inner)
    return path, str(array.type)[:SHOWN], str(kind)[:SHOWN]


def children(kind: pa.DataType) -> list[tuple[str, pa.DataType]]:
    """What a nested type holds: how it is named behind the column's name, and its type."""
    if types.is_struct(kind):
        return [(f".{field.name}", field.type) for field in kind]
    if types.is_map(kind):
        return [("[key]", kind.key_type), ("[value]", kind.item_type)]
    return [("[]", kind.value_type)] if is_list(kind) or types.is_fixed_size_list(kind) else []


def _values(array: pa.Array) -> list[pa.Array]:
    if types.is_struct(array.type):
        return [array.field(index) for index in range(array.type.num_fields)]
    if types.is_map(array.type):
        return [array.keys, array.items]
    return [array.flatten()] if is_list(array.type) or types.is_fixed_size_list(array.type) else []
