"""Parquet's own types, which Arrow does not all know: read from one file's footer, written into another's.

A footer is a Thrift struct in the compact protocol; its second field lists the schema's elements, depth
first. pyarrow reads ENUM, BSON, INTERVAL, VARIANT, GEOMETRY and GEOGRAPHY as bytes and writes them as such.
It forgets that a TIME is one with zone, and that a TIMESTAMP has no LogicalType, which is one without zone to
DuckDB. So those annotations are taken from the input's elements (:func:`annotations`) and put back
into the output's (:func:`annotated`); no other byte of a footer is changed. See parquet.thrift of
apache/parquet-format.
"""

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

MAGIC = b"PAR1"
TYPE, LENGTH, REPETITION, NAME, CHILDREN, CONVERTED, LOGICAL = (
    1,
    2,
    3,
    4,
    5,
    6,
    10,
)  # fields of a SchemaElement
MARKS = (CONVERTED, LOGICAL)
BINARY, LIST, SET, MAP, STRUCT = 8, 9, 10, 11, 12  # types of the compact protocol
REPEATED = b"\x04"  # zigzag of 2
# LogicalType's members that pyarrow writes by itself; TIME (7) only without a zone.
KNOWN_LOGICAL = {1, 2, 3, 5, 6, 8, 10, 11, 12, 14, 15}
LEGACY = {
    4: "ENUM",
    7: "TIME",
    8: "TIME",
    9: "TIMESTAMP of old",
    10: "TIMESTAMP of old",
    20: "BSON",
    21: "INTERVAL",
}  # ConvertedType's, where there is no LogicalType
FIXED = 7  # FIXED_LEN_BYTE_ARRAY
INT96 = b"\x06"  # Spark's timestamps of old
# What readers take one for, as an INT64 of microseconds: ConvertedType 10 alone is an instant to Spark, a
# TIMESTAMP to DuckDB, as INT96 is.
INSTANT = {TYPE: "04", CONVERTED: "14"}
OLD = ("12", "14")  # ConvertedType 9 and 10, as they are kept
NAMES = {4: "ENUM", 7: "TIME with zone", 13: "BSON", 16: "VARIANT", 17: "GEOMETRY", 18: "GEOGRAPHY"}

Element = dict[int, tuple[int, bytes]]  # a SchemaElement: field → (type, encoded value)
Annotations = dict[str, list[tuple[list[int], dict[int, str]]]]  # column → [(place, field → value in hex)]


@dataclasses.dataclass
class _Reader:
    """A cursor over the compact protocol. Raises `ValueError` or `IndexError` for other bytes."""

    data: bytes
    at: int = 0

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def fields(self) -> Iterator[tuple[int, int]]:
        """``(field, type)`` of a struct; the caller takes or skips each value before the next."""
        field = 0
        while kind := self.data[self.at]:
            self.at += 1
            field = field + (kind >> 4) if kind >> 4 else _unzigzag(self.varint())
            yield field, kind & 0x0F
        self.at += 1

    def list_head(self) -> tuple[int, int]:
        """``(length, type)``"""
        head = self.data[self.at]
        self.at += 1
        return (self.varint() if head >> 4 == 15 else head >> 4), head & 0x0F

    def skip(self, kind: int, depth: int = 0) -> None:
        if depth > 32:
            raise ValueError("nested too deep")
        if kind in (LIST, SET):
            length, inner = self.list_head()
            for _ in range(length):
                self.skip(3 if inner in (1, 2) else inner, depth + 1)  # a boolean in a list takes a byte
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind == BINARY:
            length = self.varint()
            self.at += length
        elif kind in (4, 5, 6):
            self.varint()
        elif kind in (3, 7):
            self.at += 1 if kind == 3 else 8
        elif kind not in (1, 2):
            raise ValueError(f"type {kind} is not in a footer")
        if self.at > len(self.data):
            raise ValueError("cut short")


def _unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _encoded(element: Element) -> bytes:
    out, last = bytearray(), 0
    for field, (kind, value) in sorted(element.items()):
        out += bytes([(field - last) << 4 | kind]) + value
        last = field
    return bytes(out) + b"\0"


def _elements(footer: bytes) -> tuple[int, int, list[Element]]:
    """The schema's elements, and where their list starts and ends."""
    reader = _Reader(footer)
    for field, kind in reader.fields():
        if field != 2:
            reader.skip(kind)
            continue
        start = reader.at
        elements = []
        for _ in range(reader.list_head()[0]):
            element: Element = {}
            for inner, inner_kind in reader.fields():
                begin = reader.at
                reader.skip(inner_kind)
                element[inner] = inner_kind, footer[begin : reader.at]
            elements.append(element)
        return start, reader.at, elements
    raise ValueError("a footer without a schema")


def _number(element: Element, field: int) -> int | None:
    return _unzigzag(_Reader(element[field][1]).varint()) if field in element else None


def _columns(elements: Sequence[Element]) -> Iterator[tuple[str, list[tuple[list[int], Element]]]]:
    """Each top-level column's name and its elements that may be annotated, each with its place in the column.

    The place of a leaf is ``[its number]``; of a group, ``[its first leaf, its leaves, its number among such
    groups]``. Lists and maps are left out: what they are called and how deep they are is the writer's.
    """
    at = 1
    for _ in range(_number(elements[0], CHILDREN) or 0):
        found: list[tuple[list[int], Element]] = []
        same: dict[tuple[int, int], int] = {}

        def walk(start: int, leaf: int, found: Any = found, same: Any = same) -> tuple[int, int]:
            """Takes the element at `start`; returns where the next one is, and the next leaf's number."""
            element = elements[start]
            children = _number(element, CHILDREN) or 0
            if not children:
                found.append(([leaf], element))
                return start + 1, leaf + 1
            mine = len(found)
            after, last = start + 1, leaf
            for _ in range(children):
                after, last = walk(after, last)
            listed = element.get(REPETITION, (0, b""))[1] == REPEATED or _logical(element) in (2, 3)
            if not listed and _number(element, CONVERTED) not in (1, 2, 3):
                span = (leaf, last - leaf)
                found.insert(mine, ([*span, same.setdefault(span, 0)], element))
                same[span] += 1
            return after, last

        length = _Reader(elements[at][NAME][1])
        length.varint()
        name = elements[at][NAME][1][length.at :].decode()
        at, _ = walk(at, 0)
        yield name, found


def _logical(element: Element) -> int | None:
    """Which member of LogicalType an element has."""
    return (
        next((field for field, _ in _Reader(element[LOGICAL][1]).fields()), None)
        if LOGICAL in element
        else None
    )


def _lost(element: Element) -> str | None:
    """The name of an annotation that pyarrow does not write by itself."""
    logical = _logical(element)
    if logical is None:
        return LEGACY.get(_number(element, CONVERTED) or 0)
    if logical == 7:  # {1: adjusted to UTC, …}: true is type 1
        return NAMES[7] if element[LOGICAL][1][1:2] == b"\x11" else None
    return None if logical in KNOWN_LOGICAL else NAMES.get(logical, f"logical type {logical}")


def annotations(footer: bytes) -> tuple[Annotations, dict[str, list[str]]]:
    """What pyarrow would lose of a file: the annotations, and their names by column."""
    marks: Annotations = {}
    names: dict[str, list[str]] = {}
    for column, found in _columns(_elements(footer)[2]):
        for place, element in found:
            if element.get(TYPE, (0, b""))[1] == INT96:
                marks.setdefault(column, []).append((place, dict(INSTANT)))
            elif name := _lost(element):
                kept = {
                    field: element[field][1].hex() for field in (TYPE, LENGTH, *MARKS) if field in element
                }
                marks.setdefault(column, []).append((place, kept))
                names.setdefault(column, []).append(name)
    return marks, names


def whole_numbers_of_128_bits(footer: bytes) -> list[str]:
    """The columns that hold what Polars writes as such: sixteen bytes without an annotation."""

    def wide(element: Element) -> bool:
        size = _number(element, TYPE), _number(element, LENGTH)
        return size == (FIXED, 16) and not element.keys() & set(MARKS)

    columns = _columns(_elements(footer)[2])
    return [column for column, found in columns if any(wide(element) for _, element in found)]


def old_timestamps(wanted: Mapping[str, Any]) -> set[str]:
    """The columns of whose annotations one is of a timestamp without a LogicalType."""
    marks = [(column, dict(kept)) for column, found in wanted.items() for _, kept in found]
    return {column for column, kept in marks if kept.get(str(CONVERTED)) in OLD and str(LOGICAL) not in kept}


def annotated(footer: bytes, wanted: Mapping[str, Any]) -> bytes:
    """`footer` with the annotations that :func:`annotations` found, where the physical type is still the
    same.
    """
    start, end, elements = _elements(footer)
    for column, found in _columns(elements):
        places = {tuple(place): element for place, element in found}
        for place, kept in wanted.get(column, ()):
            fields = {int(field): bytes.fromhex(value) for field, value in kept.items()}
            element = places.get(tuple(place))
            if element is None or any(element.get(f, (0, None))[1] != fields.get(f) for f in (TYPE, LENGTH)):
                continue
            for field in MARKS:
                element.pop(field, None)
                if field in fields:
                    element[field] = (STRUCT if field == LOGICAL else 5), fields[field]
    size = len(elements)
    head = bytes([size << 4 | STRUCT]) if size < 15 else bytes([0xF0 | STRUCT]) + _varint(size)
    return footer[:start] + head + b"".join(map(_encoded, elements)) + footer[end:]


class AnnotatingSink(io.RawIOBase):
    """A file for pyarrow's writer to write to, whose footer gets `wanted` annotations before it is written to
    `sink`.

    Call :meth:`hold` when all row groups are written, and :meth:`release` when the writer is closed.
    """

    def __init__(self, sink: BinaryIO, wanted: Mapping[str, Any]) -> None:
        self._sink, self._wanted = sink, wanted
        self._written, self._held = 0, bytearray()
        self._holding = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: Any) -> int:
        if self._holding:
            self._held += data
        else:
            self._sink.write(data)
        self._written += len(data)
        return len(data)

    def hold(self) -> None:
        self._holding = True

    def release(self) -> None:
        size = int.from_bytes(self._held[-8:-4], "little")
        footer = annotated(bytes(self._held[-8 - size : -8]), self._wanted)
        self._sink.write(bytes(self._held[: -8 - size]) + footer + len(footer).to_bytes(4, "little") + MAGIC)
