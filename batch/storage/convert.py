"""What to do with a file that is not Parquet."""

import json
from pathlib import PurePosixPath

READERS = {  # suffix → how Polars reads it
    ".csv": "read_csv({})",
    ".tsv": "read_csv({}, separator='\\t')",
    ".jsonl": "read_ndjson({})",
    ".ndjson": "read_ndjson({})",
}


def how_to_convert(name: str) -> str:
    """A remedy: one line of Python where the name tells the format."""
    path = PurePosixPath(name)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        return "convert it first (docs/formats.md)"
    source, target = json.dumps(name), json.dumps(str(path.with_suffix(".parquet")))
    line = f"polars.{reader.format(source)}.write_parquet({target})"
    return f"convert it first, in Python: import polars; {line} (docs/formats.md)"
