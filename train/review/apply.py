"""People's answers put into a copy of a night's output, with proof that nothing else changed."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch.contract.contract import Contract
from batch.contract.json_text import pretty_json
from batch.errors import InputError, StorageError
from batch.storage.digest import file_digest
from batch.storage.location import Location, replacing, write_file
from batch.storage.manifest import manifest_location
from batch.storage.output import WRITING
from batch.storage.places import LONGEST_SUFFIX, check_writable, refuse_inputs
from batch.storage.schema import readable
from train.dataset import Row
from train.decisions import Asked
from train.tables import id_texts

ANSWERED_BY = "answered_by"
BATCH = 16_384  # rows


@dataclasses.dataclass(frozen=True)
class Applied:
    rows: int
    answered: int  # by people
    changed: int  # of them, those that say something else than the output did


def apply_reviews(
    scored: Path,
    rows: Sequence[tuple[Row, str]],
    final: Path,
    contract: Contract,
    id_column: str = "id",
    text_column: str = "request",
    prefix: str = "",
) -> Applied:
    """Write `scored` with the answers of `rows` (each with its reviewer) in the contract's columns as
    `final`. A row is found by id and text together; decisions on others are left out.

    One more column, `answered_by`, names the reviewer, or `model`. Scores, status and all else stay as they
    are. The finished file is read back and compared with `scored`, value by value; `FINAL.manifest.json` is
    written last. Raises `InputError` for files that do not fit, `StorageError`.
    """
    check_final(final, [scored], prefix)
    file = _open(scored)
    columns = [prefix + field.name for field in contract.fields]
    schema = file.schema_arrow
    for name in (id_column, text_column, *columns):
        if name not in schema.names:
            raise InputError(
                f"{scored}: has no column {name!r}; give the output that was reviewed, and the names of its "
                "columns"
            )
    if prefix + ANSWERED_BY in schema.names:
        raise InputError(
            f"{scored}: has a column {prefix + ANSWERED_BY!r} already; give the output that was reviewed"
        )
    given = {row.asked: (row, reviewer) for row, reviewer in rows}
    keys = id_column, text_column
    written = schema.append(pa.field(prefix + ANSWERED_BY, pa.string()))
    applied = Applied(0, 0, 0)
    location = Location.of(final)
    with replacing(location) as temporary:
        with (
            temporary.filesystem.open_output_stream(temporary.path) as sink,
            pq.ParquetWriter(sink, written, **WRITING) as writer,
        ):
            for batch in file.iter_batches(BATCH):
                made, counts = _answered(batch, given, written, contract, keys, prefix)
                writer.write_batch(made)
                applied = Applied(*map(sum, zip(dataclasses.astuple(applied), counts, strict=True)))
        if not applied.answered:
            raise InputError(
                f"none of the decisions ({len(given)}) is on a row of {scored}; give the output that was "
                "reviewed, and the names of its columns"
            )
        _prove(scored, Path(temporary.path), given, contract, keys, prefix)
    facts = {
        "scored": {"path": scored.name, "sha256": file_digest(scored)},
        "output": {"rows": applied.rows, "sha256": file_digest(final), "bytes": final.stat().st_size},
        "answered_by_people": applied.answered,
        "changed": applied.changed,
    }
    write_file(manifest_location(str(final)), pretty_json(facts))
    return applied


def check_final(final: Path, inputs: Iterable[Path], prefix: str = "") -> None:
    """Raises `InputError` where the result cannot be written as `final`, or would be written over one of the
    inputs or another file that is not an earlier result.
    """
    if final.suffix != ".parquet":
        raise InputError(f"{final}: the result is a Parquet file; end with the name of one, FINAL.parquet")
    check_writable(final, "the result", suffix=LONGEST_SUFFIX)
    refuse_inputs(str(final), map(Location.of, inputs), "the result")
    if final.exists() and prefix + ANSWERED_BY not in _columns(final):
        raise InputError(f"{final} exists and is not a result of apply-reviews; name another file")


def _columns(path: Path) -> Sequence[str]:
    try:
        names: Sequence[str] = pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        return ()
    return names


def _asked(batch: pa.RecordBatch, keys: tuple[str, str]) -> list[Asked]:
    """Id and text of each row, as a decision has them."""
    ids, texts = id_texts(batch.column(keys[0])), readable(batch.column(keys[1]))
    return [(name or "", text or "") for name, text in zip(ids, texts, strict=True)]


def _answered(
    batch: pa.RecordBatch,
    given: Mapping[Asked, tuple[Row, str]],
    schema: pa.Schema,
    contract: Contract,
    keys: tuple[str, str],
    prefix: str,
) -> tuple[pa.RecordBatch, tuple[int, int, int]]:
    found = [given.get(asked) for asked in _asked(batch, keys)]
    hits = {index: each for index, each in enumerate(found) if each}
    arrays = list(batch.columns)
    changed: set[int] = set()
    for field in contract.fields if hits else ():
        at = batch.schema.get_field_index(prefix + field.name)
        values = arrays[at].to_pylist()
        for index, (row, _) in hits.items():
            answer = row.answer
            if field.name in answer:
                if field.scored and field.read(values[index]) != answer[field.name]:
                    changed.add(index)
                values[index] = answer[field.name]
        kind = batch.schema.field(at).type
        try:
            arrays[at] = pa.array(values, kind)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise InputError(
                f"column {prefix + field.name!r} holds {kind}, which has no room for the answers of people; "
                "give the output that was reviewed"
            ) from error
    arrays.append(pa.array([each[1] if each else "model" for each in found], pa.string()))
    return pa.RecordBatch.from_arrays(arrays, schema=schema), (batch.num_rows, len(hits), len(changed))


def _prove(
    scored: Path,
    final: Path,
    given: Mapping[Asked, tuple[Row, str]],
    contract: Contract,
    keys: tuple[str, str],
    prefix: str,
) -> None:
    """Every value is as it was, but for the contract's columns of the rows that people answered."""
    answered = {prefix + field.name for field in contract.fields}
    for before, after in zip(_batches(scored), _batches(final), strict=True):
        people = pa.array([asked in given for asked in _asked(before, keys)])
        for name in before.schema.names:
            old, new = before.column(name), after.column(name)
            if name in answered:
                mask = pa.compute.invert(people)
                old, new = old.filter(mask), new.filter(mask)
            if not old.equals(new) and repr(old.to_pylist()) != repr(new.to_pylist()):  # NaN is not NaN
                raise StorageError(
                    f"{final.name}: column {name!r} changed where no person answered; run again"
                )


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    return iter(pq.ParquetFile(path, page_checksum_verification=True).iter_batches(BATCH))


def _open(path: Path) -> pq.ParquetFile:
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; join its parts into one Parquet file first")
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: cannot be read as Parquet: {why}; give an output of batch-route"
        ) from error
