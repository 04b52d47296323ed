"""Answers that lie in a file already: an output of `batch-route`, or any table with its columns, found by id
and, where it has them, text.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import polars.selectors as cs
import pyarrow as pa
from polars.datatypes import FloatType, IntegerType
from pyarrow import types

from batch.adapter.bundle import Bundle
from batch.adapter.registry import DIGEST, Registry
from batch.contract.contract import Contract
from batch.errors import AdapterError, InputError
from batch.storage.location import Location
from batch.storage.manifest import manifest_location, read_manifest
from batch.storage.parquet import ParquetSource
from batch.storage.schema import is_binary, is_id, is_list, is_string, is_text, plain, readable, values_type
from train.dataset import Row
from train.evaluation.evaluate import Evaluation, evaluate
from train.evaluation.seen import seen_by
from train.tables import id_texts

ABSENT = "absent"  # error code of a gold row that the file does not hold
BATCH = 65_536  # rows
NUMBERS, TEXTS = (pl.Null, FloatType, IntegerType), (pl.Null, pl.String)


class FileRow(NamedTuple):
    answer: dict[str, Any] | None
    error_code: str | None


def read_scored(
    path: Path, id_column: str = "id", text_column: str | None = None, names: Iterable[str] | None = None
) -> pl.DataFrame:
    """The scored table at `path`, a file or a folder of parts: its ids and texts as texts, and those of its
    other columns (only `names`, if given) whose values JSON has. NaN is null: pandas writes it so. Raises
    `InputError`.
    """
    sources = sources_of(path)
    schema = sources[0].schema
    _check(path, schema, id_column, "--id-column", "strings, bytes or whole numbers", is_id)
    if text_column is not None:
        _check(path, schema, text_column, "--text-column", "strings", is_text)
    named = {id_column, text_column}
    wanted = [each for each in schema if each.name in named or names is None or each.name in names]
    columns = [each.name for each in wanted if each.name in named or _in_json(each.type)]
    none = {name: pl.String if name in named else pl.Null for name in columns}
    parts = [
        pl.DataFrame({name: _as_polars(batch.column(name), name == id_column) for name in columns})
        for source in sources
        for batch in source.batches(size=BATCH, columns=columns)
    ]
    table = pl.concat(parts, how="vertical_relaxed") if parts else pl.DataFrame(schema=none)
    floats = table.select(cs.float()).columns
    table = table.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)) for name in floats)
    if table[id_column].null_count() or table[id_column].n_unique() < table.height:
        raise InputError(f"{path}: column {id_column!r} holds an id twice, or none; rows are found by id")
    return table


def text_column_of(scored: Path, named: str | None) -> str | None:
    """`named`, else the column that the output's run read, by its manifest, else `request`; None where it has
    neither.
    """
    told = (read_manifest(manifest_location(str(scored))) or {}).get("job", {}).get("text_column")
    names = sources_of(scored)[0].schema.names
    return named or next((name for name in (told, "request") if name in names), None)


def sources_of(path: Path) -> list[ParquetSource]:
    """The Parquet file at `path`, or those of an output that is a folder. Raises `InputError`."""
    files = (
        sorted(path.glob("*.parquet")) if os.path.isdir(path) else [path]
    )  # `is_dir` raises for a name that is too long
    if not files:
        raise InputError(f"{path}: holds no Parquet file; give an output of batch-route")
    return [ParquetSource.open(Location.of(file)) for file in files]


def _check(
    path: Path, schema: pa.Schema, name: str, option: str, wanted: str, accepts: Callable[[pa.DataType], bool]
) -> None:
    if name not in schema.names:
        raise InputError(f"{path}: has no column {name!r}; name it with {option}")
    if not accepts(kind := schema.field(name).type):
        raise InputError(f"{path}: column {name!r} holds {kind}, not {wanted}; name another with {option}")


def _in_json(kind: pa.DataType) -> bool:
    """Whether its values are texts, numbers, booleans, null or lists of them, once bytes are texts."""
    kind = values_type(kind)
    if is_list(kind):
        return not is_binary(kind.value_type) and _in_json(kind.value_type)
    simple = (types.is_boolean, types.is_integer, types.is_floating, types.is_null, is_string, is_binary)
    return any(accepts(kind) for accepts in simple)


def _as_polars(array: pa.Array, ids: bool) -> pl.Series:
    kind = values_type(array.type)
    if ids:
        return pl.Series(id_texts(array), dtype=pl.String)
    if is_string(kind) or is_binary(kind):
        return pl.Series(readable(array), dtype=pl.String)
    if is_list(kind):
        return pl.Series(array.to_pylist())
    return pl.Series(
        pl.from_arrow(plain(array).cast(pa.float32()) if types.is_float16(kind) else plain(array))
    )


def check_kinds(table: pl.DataFrame, path: Path, numbers: Iterable[str], texts: Iterable[str]) -> None:
    """Raises `InputError` for a column of an output that holds something else than it does there."""
    for names, wanted, kinds in ((numbers, "numbers", NUMBERS), (texts, "texts", TEXTS)):
        for name in names:
            if name in table.columns and not isinstance(table.schema[name], kinds):
                raise InputError(
                    f"{path}: column {name!r} holds {table.schema[name]}, not {wanted}; "
                    "give an output of batch-route"
                )


def adapter_of(table: pl.DataFrame) -> str | None:
    """Digest of the adapter that wrote the table, where its rows name one and the same."""
    digests = table["adapter"].drop_nulls().unique().to_list() if "adapter" in table.columns else []
    return str(digests[0]) if len(digests) == 1 else None


class OutputTask(NamedTuple):
    """What an output was made under; no bundle where it is not in the registry."""

    contract: Contract
    bundle: Bundle | None


def task_by(digest: str | None, registry: Registry, contract: str | None = None) -> OutputTask | None:
    """The contract named, else that of the adapter with this digest; None where there is neither."""
    bundle = None
    if digest and DIGEST.fullmatch(digest) and (registry.root / digest).is_dir():
        try:
            bundle = Bundle.open(registry.root / digest)
        except AdapterError:
            if not contract:
                raise
    if contract:
        return OutputTask(Contract.load(contract), bundle)
    return OutputTask(bundle.contract, bundle) if bundle else None


def scored_task(table: pl.DataFrame, registry: Registry, contract: str | None = None) -> OutputTask:
    """The contract named, else that of the adapter that wrote the table, else the shipped one."""
    made = task_by(adapter_of(table), registry, contract)
    return made or OutputTask(Contract.load("data/contract.toml"), None)


def contract_of(table: pl.DataFrame, registry: Registry, named: str | None = None) -> Contract:
    return scored_task(table, registry, named).contract


def judge_scored(
    table: pl.DataFrame,
    path: Path,
    rows: Sequence[Row],
    contract: Contract,
    dataset: str,
    id_column: str = "id",
    text_column: str | None = "request",
    bundle: Bundle | None = None,
) -> Evaluation:
    """Judge the table's answers, the `bundle`'s, against gold `rows` by id; a row that it lacks is an error
    row. Raises `InputError`, also where an id has another text: ids may begin again in another backlog. A
    table without texts has no `text_column`, and is judged by id alone.
    """
    known = [field for field in contract.fields if field.name in table.columns]
    if missing := [field.name for field in contract.scored_fields if field.name not in table.columns]:
        raise InputError(
            f"{path}: has no column {missing[0]!r} with the values of a field of {contract.name}; name its "
            "contract with --contract"
        )
    gold = pl.DataFrame({id_column: [row.id for row in rows], "_gold": [row.request for row in rows]})
    joined = gold.join(table, on=id_column, how="left", maintain_order="left")
    found = pl.Series(gold[id_column].is_in(table[id_column].implode()))
    if not found.any():
        raise InputError(f"{path}: holds none of the ids of {dataset}; name the ids' column with --id-column")
    other = joined.filter(found & pl.col(text_column or "_gold").ne_missing(pl.col("_gold")))
    if other.height:
        name = other[id_column][0]
        raise InputError(
            f"{path}: id {name!r} has another request than in {dataset}; give the gold rows of this backlog"
        )
    answers = []
    for here, line in zip(found, joined.iter_rows(named=True), strict=True):
        read = contract.read(line)
        answer = {
            field.name: read[field.name]
            for field in known
            if read[field.name] is not None or field.legal(None)
        }
        error = line.get("error_code") if here else ABSENT
        answers.append(FileRow(answer if answer and error is None else None, error))
    seen = seen_by(bundle, rows) if bundle else None
    return evaluate(rows, answers, contract, path.name, dataset, None if seen is None else len(seen))
