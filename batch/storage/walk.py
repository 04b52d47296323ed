"""The folders of this machine that are read as input, and what is hidden in one."""

import os
import re
from collections.abc import Iterator

from batch.storage.globs import may_hold
from batch.storage.location import Location, printable
from batch.storage.tables import refuse_table

PARTITION = re.compile(r"([^=/]+)=(.*)", re.DOTALL)  # a folder's name: key and value
Node = tuple[int, int]  # device and inode


def folders(
    root: str, pattern: tuple[str, ...], parts: tuple[str, ...] = (), above: frozenset[Node] = frozenset()
) -> Iterator[tuple[tuple[str, ...], Node, list[os.DirEntry[str]]]]:
    """The folders that are read, links followed: path below the root, device and inode, what is in it."""
    folder = os.path.join(root, *parts)
    node = node_of(os.stat(folder))
    if node in above:
        return  # a link to a folder that it lies in
    if parts and printable(folder) == folder:
        refuse_table(Location.of("/"), folder)
    with os.scandir(folder) as found:
        entries = list(found)
    yield parts, node, entries
    for entry in entries:
        inner = (*parts, entry.name)
        if not is_hidden(entry.name) and (not pattern or may_hold(inner, pattern)) and _is_folder(entry):
            yield from folders(root, pattern, inner, above | {node})


def node_of(status: os.stat_result) -> Node:
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where this user may not see
        return False


def is_hidden(name: str) -> bool:
    """`lost+found` is what fsck saves, in the root of a volume, and only root may look into it."""
    if name.startswith("_"):
        return not PARTITION.fullmatch(name)
    return name.startswith(".") or name == "lost+found"
