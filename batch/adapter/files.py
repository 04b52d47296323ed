"""Untrusted files: JSON, and the tensors of a safetensors file, without torch."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from batch.errors import AdapterError
from batch.storage.location import reason

MAX_JSON_BYTES = 256 << 20  # of a tokenizer with 262,144 tokens it is 33 MB
HEADER_BYTES = 100_000_000  # the format's own limit
Floats = np.ndarray[Any, np.dtype[np.float32]]
BLOCK = 1 << 24  # bytes that are looked at together
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of the types that an adapter may have


def no_remote_code(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in read_json(folder / name, "a model folder"):
            raise AdapterError(
                f"{folder}: {name} names remote code (auto_map), which is never run; use a standard "
                "architecture"
            )


def read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("is larger than any such file")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise AdapterError(f"{path.parent} is not {what}: it has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: cannot be read: {reason(error)}; copy the folder again") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path}: is not a JSON object; copy the folder again")
    return content


class Tensor(NamedTuple):
    dtype: str  # as the format names it
    shape: tuple[int, ...]
    start: int  # offset in the file
    end: int


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors by name, from the header: eight bytes of length, then JSON (the format's specification).

    Raises `AdapterError` for a file that is not safetensors or is cut off, or whose tensors do not lie one
    behind the other up to its end.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(HEADER_BYTES, size - 8):
                raise ValueError("the header's length is impossible")
            header = json.loads(file.read(length))
        tensors = {
            str(name): Tensor(
                str(entry["dtype"]),
                tuple(int(n) for n in entry["shape"]),
                8 + length + int(entry["data_offsets"][0]),
                8 + length + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {reason(error)}; copy the folder again") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise AdapterError(
            f"{path}: is not a safetensors file: {reason(error)}; copy the folder again"
        ) from error
    for name, tensor in tensors.items():
        wanted = math.prod(tensor.shape) * BYTES.get(tensor.dtype, 0)
        if tensor.end > size:
            raise AdapterError(f"{path}: is cut off before the end of {name}; copy the folder again")
        if min(tensor.shape, default=1) < 0 or tensor.start > tensor.end:
            raise AdapterError(f"{path}: {name} has an impossible shape; copy the folder again")
        if tensor.dtype in BYTES and wanted != tensor.end - tensor.start:
            raise AdapterError(
                f"{path}: {name} does not have as many values as its shape; copy the folder again"
            )
    at = 8 + length
    for start, end in sorted((tensor.start, tensor.end) for tensor in tensors.values()):
        at = end if start == at else -1
    if at != size:  # what no tensor has could be anything; the format's own library refuses it as well
        raise AdapterError(
            f"{path}: has bytes that no tensor has, or that two have; save it again with safetensors"
        )
    return tensors


def largest_values(path: Path, tensors: dict[str, Tensor]) -> dict[str, float]:
    """The largest magnitude in each tensor, as float32 holds it: infinite where one is beyond, NaN where one
    is.
    """
    largest = {}
    with path.open("rb") as file:
        for name, tensor in tensors.items():
            file.seek(tensor.start)
            found = [np.float32(0.0)]
            for start in range(tensor.start, tensor.end, BLOCK):
                values = _as_float32(file.read(min(BLOCK, tensor.end - start)), tensor.dtype)
                found.append(np.abs(values).max(initial=0.0))
            largest[name] = float(np.max(found))  # NaN, if one is
    return largest


def _as_float32(data: bytes, dtype: str) -> Floats:
    if dtype == "BF16":  # the upper half of a float32
        halves = np.frombuffer(data, "<u2").astype(np.uint32)
        widened: Floats = np.left_shift(halves, 16).view(np.float32)
        return widened
    with np.errstate(over="ignore"):
        values: Floats = np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype("f4")
    return values
