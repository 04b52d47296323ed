"""Tables that have a log of their own. Their folders hold files that no longer count, or do not yet, so that
such a folder is not read without its log.
"""

import errno
import re

from pyarrow import fs

from batch.errors import InputError
from batch.storage.location import Location

# By the kind of table: folders inside, and what a file in one is called where others have such folders too.
TABLES = {
    "a Delta": {"_delta_log": ""},
    "a Hudi": {".hoodie": ""},
    "a Spark Structured Streaming": {"_spark_metadata": ""},
    "an Iceberg": {"metadata": r"(?i)(v\d+|\d+-[\da-f]{8}(-[\da-f]{4,12}){4})(\.gz)?\.metadata\.json(\.gz)?"},
    "a Paimon": {"snapshot": r"snapshot-\d+", "schema": r"schema-\d+"},
}
CLOSED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.EINVAL)


def refuse_table(location: Location, folder: str) -> None:
    """Raises `InputError` where a folder of the location's file system is such a table."""
    if not folder and not location.local:
        return  # above a store's buckets
    for kind, signs in TABLES.items():
        if all(_has(location, f"{folder}/{name}", pattern) for name, pattern in signs.items()):
            name = location.at(folder).name
            raise InputError(f"{name} is {kind} table; export its rows to Parquet files first")


def _has(location: Location, folder: str, pattern: str) -> bool:
    """Whether a folder is there, with a file of such a name. What cannot be looked into shows nothing: above
    the input it is none of ours, and in the input it is refused itself.
    """
    try:
        if not pattern:
            return bool(location.filesystem.get_file_info(folder).type == fs.FileType.Directory)
        found = location.filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        return any(info.is_file and re.fullmatch(pattern, info.base_name) for info in found)
    except OSError as error:
        if error.errno not in CLOSED:
            raise
        return False


def may_be_sign(parts: tuple[str, ...]) -> bool:
    """Whether the folder that a path starts from may be such a table, by what the path says."""
    signs = (sign for each in TABLES.values() for sign in each.items())
    return any(
        parts[0] == name and (not pattern or re.fullmatch(pattern, parts[-1])) for name, pattern in signs
    )
