"""The columns' Arrow types: as a file's are read, as several files agree on them, and which can be ids or
texts.

Files that Spark, DuckDB and pyarrow.dataset take for one table are one here too: nullability, kinds of
strings, dictionaries, the width of numbers and the order of columns may differ. Nothing is widened with a
loss.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
UNITS = ("s", "ms", "us", "ns")  # from coarse to fine
LISTS = {  # by a type's id: what makes the type of its values' field, the class of its arrays, their offsets
    pa.list_(pa.null()).id: (pa.list_, pa.ListArray, pa.int32()),
    pa.large_list(pa.null()).id: (pa.large_list, pa.LargeListArray, pa.int64()),
    pa.list_view(pa.null()).id: (pa.list_view, pa.ListViewArray, pa.int32()),
    pa.large_list_view(pa.null()).id: (pa.large_list_view, pa.LargeListViewArray, pa.int64()),
}


def is_string(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_binary(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def is_view(kind: pa.DataType) -> bool:
    """Views of strings and bytes; Arrow has few kernels for them, and some of those give wrong values."""
    return bool(types.is_string_view(kind) or types.is_binary_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Lists of any layout but fixed-size ones."""
    return kind.id in LISTS


def is_ordered(kind: pa.DataType) -> bool:
    return bool(types.is_dictionary(kind) and kind.ordered)


def values_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves, without a dictionary and without an extension's name."""
    if types.is_dictionary(kind):
        return values_type(kind.value_type)
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def plain(array: pa.Array) -> pa.Array:
    """`array` as :func:`values_type` has it, to be computed with: a view is a large string or large bytes."""
    if types.is_dictionary(array.type):
        return plain(array.dictionary_decode())
    if isinstance(array.type, pa.BaseExtensionType):
        return plain(array.storage)
    if is_view(array.type):
        return array.cast(pa.large_string() if types.is_string_view(array.type) else pa.large_binary())
    return array


def taken(array: pa.Array, rows: pa.Array) -> pa.Array:
    """The values of `array` at `rows`, as the same type."""
    if is_view(values_type(array.type)):
        return conformed(plain(array).take(rows), array.type)
    return array.take(rows)


def readable(array: pa.Array) -> list[Any]:
    """Values as a person can be shown them: in a text, bytes that are not UTF-8 are escaped; a value of bytes
    that are not is hexadecimal.
    """
    array = plain(array)
    if is_string(array.type):
        texts = array.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode(errors="backslashreplace") for text in texts]
    return [_spelt(value) if isinstance(value, bytes) else value for value in array.to_pylist()]


def _spelt(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def is_text(kind: pa.DataType) -> bool:
    """Strings, dictionaries of them, and JSON."""
    return is_string(values_type(kind))


def is_id(kind: pa.DataType) -> bool:
    """Strings, bytes (a UUID is sixteen) and whole numbers, decimals of scale 0 among them."""
    kind = values_type(kind)
    whole = types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0)
    return whole or is_string(kind) or is_binary(kind) or types.is_fixed_size_binary(kind)


def as_read(field: pa.Field) -> pa.Field:
    """Dictionaries of one row group differ from another's, so their indices get room. Inside nested values
    Arrow cannot join them, nor slice views when it writes: there both are plain values.
    """
    kind = field.type
    if types.is_dictionary(kind):
        return field.with_type(pa.dictionary(pa.int32(), kind.value_type, kind.ordered))
    return field.with_type(_nested(kind, lambda inner: inner.with_type(_inside(inner.type))))


def _inside(kind: pa.DataType) -> pa.DataType:
    if types.is_dictionary(kind):
        return kind.value_type
    if is_view(kind):
        return pa.string() if types.is_string_view(kind) else pa.binary()
    return _nested(kind, lambda inner: inner.with_type(_inside(inner.type)))


def without_zone(field: pa.Field) -> pa.Field:
    """`field` with none of its timestamps in a time zone."""
    if types.is_timestamp(field.type):
        return field.with_type(pa.timestamp(field.type.unit))
    return field.with_type(_nested(field.type, without_zone))


def _nested(kind: pa.DataType, change: Callable[[pa.Field], pa.Field]) -> pa.DataType:
    """`kind` with each of its child fields changed; the same type where it has none."""
    if types.is_struct(kind):
        return pa.struct([change(kind.field(index)) for index in range(kind.num_fields)])
    if types.is_map(kind):
        return pa.map_(change(kind.key_field), change(kind.item_field), kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(change(kind.value_field), kind.list_size)
    return LISTS[kind.id][0](change(kind.value_field)) if is_list(kind) else kind


def unified_field(one: pa.Field, other: pa.Field) -> pa.Field | None:
    """A field that holds the values of both, with the metadata of the first; None where there is none."""
    kind = unified(one.type, other.type)
    return None if kind is None else one.with_type(kind).with_nullable(one.nullable or other.nullable)


def unified(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type that holds every value of both exactly; None where there is none."""
    if one.equals(other):
        return one
    if types.is_null(one) or types.is_null(other):
        return other if types.is_null(one) else one
    for rule in (_strings, _numbers, _times, _nests):
        if (kind := rule(one, other)) is not None:
            return kind
    return None


def _strings(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if types.is_dictionary(one) and types.is_dictionary(other):
        values = unified(one.value_type, other.value_type)
        return values and pa.dictionary(pa.int32(), values, one.ordered and other.ordered)
    one, other = values_type(one), values_type(other)
    if is_string(one) and is_string(other):
        large = types.is_large_string(one) or types.is_large_string(other)
        return one if one.equals(other) else pa.large_string() if large else pa.string()
    if is_binary(one) and is_binary(other):
        large = types.is_large_binary(one) or types.is_large_binary(other)
        return one if one.equals(other) else pa.large_binary() if large else pa.binary()
    return None


def _numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if types.is_integer(one) and types.is_integer(other):
        if types.is_signed_integer(one) == types.is_signed_integer(other):
            return max(one, other, key=lambda kind: int(kind.bit_width))
        signed, unsigned = (one, other) if types.is_signed_integer(one) else (other, one)
        width = max(signed.bit_width, 2 * unsigned.bit_width)
        return next((kind for kind in INTEGERS if kind.bit_width == width), None)
    if types.is_floating(one) and types.is_floating(other):
        return max(one, other, key=lambda kind: int(kind.bit_width))
    if types.is_decimal(one) and types.is_decimal(other) and one.scale == other.scale:
        return max(one, other, key=lambda kind: (int(kind.bit_width), int(kind.precision)))
    return None


def _times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if types.is_date(one) and types.is_date(other):
        return pa.date32()
    same = [
        kind for kind in (types.is_timestamp, types.is_time, types.is_duration) if kind(one) and kind(other)
    ]
    if not same:
        return None
    unit = max(one.unit, other.unit, key=UNITS.index)
    if same[0] is types.is_timestamp:
        if (one.tz is None) != (other.tz is None):
            return None
        return pa.timestamp(unit, one.tz if one.tz == other.tz else "UTC")
    if same[0] is types.is_duration:
        return pa.duration(unit)
    return pa.time64(unit) if unit in ("us", "ns") else pa.time32(unit)


def _nests(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if types.is_struct(one) and types.is_struct(other):
        pairs = [*zip(one, other, strict=False)]
        if one.num_fields != other.num_fields or any(a.name != b.name for a, b in pairs):
            return None
        fields = [unified_field(a, b) for a, b in pairs]
        return None if any(field is None for field in fields) else pa.struct(fields)
    if types.is_map(one) and types.is_map(other):
        key, item = (
            unified_field(one.key_field, other.key_field),
            unified_field(one.item_field, other.item_field),
        )
        return None if key is None or item is None else pa.map_(key, item)
    fixed = [kind.list_size for kind in (one, other) if types.is_fixed_size_list(kind)]
    if all(is_list(kind) or types.is_fixed_size_list(kind) for kind in (one, other)):
        value = unified_field(one.value_field, other.value_field)
        if value is None or len(fixed) == 2:
            return value and pa.list_(value, fixed[0] if fixed[0] == fixed[1] else -1)
        large = types.is_large_list(one) or types.is_large_list(other)
        return pa.large_list(value) if large else pa.list_(value)
    return None


def conformed(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """`array` as `kind`, which :func:`unified` made of its type. Raises `pa.ArrowInvalid` on any loss.

    Nested values are rebuilt around their children: inside them Arrow casts no nulls and gives other values
    for list views, and Python's values are not those of Arrow (times of nanoseconds, dates after 9999).
    """
    if array.type.equals(kind):
        return array  # and not cast: that breaks the offsets of a sliced list of nulls
    if types.is_null(array.type):
        return pa.nulls(len(array), kind)
    if isinstance(array.type, pa.BaseExtensionType):
        return conformed(array.storage, kind)
    if isinstance(kind, pa.BaseExtensionType):
        return kind.wrap_array(conformed(array, kind.storage_type))
    if types.is_dictionary(kind) and not types.is_dictionary(array.type):
        return array.cast(kind.value_type).dictionary_encode().cast(kind)
    if types.is_struct(kind):
        children = [conformed(array.field(index), field.type) for index, field in enumerate(kind)]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    if types.is_map(kind):
        return _conformed_map(array, kind)
    return _conformed_list(array, kind) if types.is_nested(kind) else array.cast(kind)


def _conformed_map(array: pa.MapArray, kind: pa.MapType) -> pa.Array:
    starts = array.offsets
    span = slice(starts[0].as_py(), starts[-1].as_py())  # the children are those of the array before slicing
    keys, items = conformed(array.keys[span], kind.key_type), conformed(array.items[span], kind.item_type)
    return pa.MapArray.from_arrays(pc.subtract(starts, starts[0]), keys, items, kind, mask=array.is_null())


def _conformed_list(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if types.is_fixed_size_list(kind):
        width = kind.list_size
        values = conformed(array.values[array.offset * width :][: len(array) * width], kind.value_type)
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=array.is_null())
    sizes = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    # Arrow makes no empty array of nested extensions.
    values = conformed(array.flatten() if sizes.any() else array.values[:0], kind.value_type)
    ends, view = np.cumsum(sizes, dtype=np.int64), types.is_list_view(kind) or types.is_large_list_view(kind)
    spans = (ends - sizes, sizes) if view else (np.append(0, ends),)
    _, arrays, width = LISTS[kind.id]
    layout = (pa.array(each).cast(width) for each in spans)
    return arrays.from_arrays(*layout, values, kind, mask=array.is_null())


def merged_levels(found: Sequence[pa.Array]) -> pa.Array | None:
    """One order of an ordered dictionary's values that keeps each of the orders found; None where they
    contradict one another. `found` is not empty; the longest must hold the others."""
    longest = max(found, key=len)
    for levels in found:
        places = pc.index_in(levels, longest).to_pylist()
        if None in places or places != sorted(set(places)):
            return None
    return longest


def on_levels(array: pa.DictionaryArray, levels: pa.Array, kind: pa.DataType) -> pa.Array:
    """`array` with the dictionary `levels`, which :func:`merged_levels` made of its own."""
    if array.dictionary.equals(levels):
        return array
    return pa.DictionaryArray.from_arrays(
        pa.compute.index_in(plain(array), levels).cast(pa.int32()), levels, ordered=kind.ordered
    )


def names_alike(names: Sequence[str], others: Sequence[str]) -> tuple[str, str] | None:
    """The first pair of names that most readers take for one: they differ in case at most."""
    known = {other.casefold(): other for other in others}
    return next(((name, known[name.casefold()]) for name in names if name.casefold() in known), None)
