"""`batch-route show OUTPUT`: a few rows of a finished output, as a person reads them."""

import itertools
import random
from typing import Any

from batch.errors import one_line
from batch.storage.location import Location
from batch.storage.manifest import output_files, whole_manifest
from batch.storage.output import check_bytes
from batch.storage.parquet import ParquetSource
from batch.storage.schema import readable

FIRST = 10_000  # rows that the ones shown are drawn from
SEED = 0  # the same rows each time
SCORES = (
    "_score",
    "_label_scores",
    "_second",
)  # ends of columns' names, a number or a runner-up for each field


def show(output: str, count: int) -> list[dict[str, str]]:
    """`count` of the output's first rows, drawn at random and in their order: id, text, answer, score, status
    and triage, by column. Where some rows are for a person, at least one of them is shown.

    Raises `InputError`, `StorageError`.
    """
    rows, job = _first_rows(output)
    people = f"{job['prefix']}triage"
    draw = random.Random(SEED)
    order = draw.sample(range(len(rows)), len(rows))
    human = [index for index in order if rows[index].get(people) == "human"][:1]
    chosen = (human + [index for index in order if index not in human])[:count]
    return [_told(rows[index], job) for index in sorted(chosen)]


def _first_rows(output: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows as they lie there, and what the manifest says of the job."""
    manifest = whole_manifest(output)
    job, rows = manifest["job"], list[dict[str, Any]]()
    given, made = set(job["input"]["schema"]), manifest["output"]["columns"]
    columns = [job["id_column"], job["text_column"], *(each for each in made if each not in given)]
    told = manifest["output"].get("parts", [manifest["output"]])
    files = itertools.starmap(_opened, zip(output_files(output, manifest), told, strict=True))
    for batch in itertools.chain.from_iterable(file.batches(columns=columns) for file in files):
        first = batch.slice(0, FIRST - len(rows))
        values = zip(*map(readable, first.columns), strict=True)
        rows += [dict(zip(first.schema.names, row, strict=True)) for row in values]
        if len(rows) == FIRST:
            break
    return rows, job


def _opened(file: Location, told: dict[str, Any]) -> ParquetSource:
    """Of a damaged file, rows could be shown that no run wrote; to hash one takes a second a gigabyte."""
    check_bytes(file, told)
    return ParquetSource.open(file)


def _told(row: dict[str, Any], job: dict[str, Any]) -> dict[str, str]:
    score, adapter = (f"{job['prefix']}{name}" for name in ("score", "adapter"))
    return {
        name: _text(value)
        for name, value in row.items()
        if value is not None and name != adapter and (name == score or not name.endswith(SCORES))
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3f}"
    return one_line(", ".join(map(str, value)) if isinstance(value, list) else str(value))
