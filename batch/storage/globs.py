"""Globs, segment by segment; what lies there under a pattern's very name is no pattern."""

import fnmatch
import re

from pyarrow import fs

from batch.errors import InputError
from batch.storage.location import Location


def split_glob(location: Location) -> tuple[str, tuple[str, ...]]:
    """The folder that a glob starts in, and its pattern by segments. What is there under its very name is no
    pattern.
    """
    if not re.search(r"[*?\[]", location.path):
        raise InputError(f"no file {location.name}; check the path")
    lead = "/" if location.path.startswith("/") else ""
    segments = location.path.strip("/").split("/")
    root = ""
    for index, segment in enumerate(segments):
        under = f"{root}/{segment}" if root else lead + segment
        literal = not re.search(r"[*?\[]", segment)
        if not literal and location.filesystem.get_file_info(under).type == fs.FileType.NotFound:
            return root or lead, tuple(segments[index:])
        root = under
    raise InputError(f"no file {location.name}; check the path")


def may_hold(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a folder can hold what a pattern names."""
    for part, segment in zip(parts, pattern, strict=False):
        if segment == "**":
            return True
        if not _one(part, segment):
            return False
    return True


def matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a pattern names a file, or a folder that it lies in."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(matches(parts[index:], pattern[1:]) for index in range(len(parts)))
    return bool(parts) and _one(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def _one(part: str, segment: str) -> bool:
    return part == segment or fnmatch.fnmatchcase(part, segment)
