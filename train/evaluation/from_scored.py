"""Answers that lie in a file already: an output of `batch-route`, or any table with its columns, by id."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import InputError
from train.dataset import Row
from train.evaluation.evaluate import Evaluation, evaluate

ABSENT = "absent"  # error code of a gold row that the file does not hold


class FileRow(NamedTuple):
    answer: dict[str, Any] | None
    error_code: str | None


def read_scored(path: Path, id_column: str = "id") -> pl.DataFrame:
    """The scored table at `path`, its ids as texts. Raises `InputError`."""
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise InputError(
            f"{path}: cannot be read as Parquet: {' '.join(str(error).split())[:200]}; give a scored output"
        ) from error
    if id_column not in table.columns:
        raise InputError(f"{path}: has no column {id_column!r}; name the ids' column with --id-column")
    table = table.with_columns(pl.col(id_column).cast(pl.String))
    if table[id_column].n_unique() < table.height:
        raise InputError(f"{path}: column {id_column!r} holds an id twice; gold rows are found by id")
    return table


def adapter_of(table: pl.DataFrame) -> str | None:
    """Digest of the adapter that wrote the table, where its rows name one and the same."""
    digests = table["adapter"].drop_nulls().unique().to_list() if "adapter" in table.columns else []
    return str(digests[0]) if len(digests) == 1 else None


def contract_of(table: pl.DataFrame, registry: Registry, named: str | None = None) -> Contract:
    """The contract `named`, else that of the adapter that wrote the table, else the shipped one."""
    digest = adapter_of(table)
    if named or digest is None or not (registry.root / digest).is_dir():
        return Contract.load(named or "data/contract.toml")
    return Bundle.open(registry.root / digest).contract


def judge_scored(
    table: pl.DataFrame,
    path: Path,
    rows: Sequence[Row],
    contract: Contract,
    dataset: str,
    id_column: str = "id",
) -> Evaluation:
    """Judge the table's answers against gold `rows` by id; a row that it lacks is an error row. Raises
    `InputError`.
    """
    known = [field for field in contract.fields if field.name in table.columns]
    if missing := [field.name for field in contract.scored_fields if field.name not in table.columns]:
        raise InputError(
            f"{path}: has no column {missing[0]!r}, a field of {contract.name}; name its contract "
            "with --contract"
        )
    gold = pl.DataFrame({id_column: [row.id for row in rows], "_gold": [row.request for row in rows]})
    joined = gold.join(table, on=id_column, how="left", maintain_order="left")
    found = pl.Series(gold[id_column].is_in(table[id_column].implode()))
    if not found.any():
        raise InputError(f"{path}: holds none of the ids of {dataset}; name the ids' column with --id-column")
    if "request" in table.columns:
        other = joined.filter(found & (pl.col("request") != pl.col("_gold")))
        if other.height:
            name = other[id_column][0]
            raise InputError(
                f"{path}: id {name!r} has another request than in {dataset}; give the gold rows of "
                "this backlog"
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
    return evaluate(rows, answers, contract, path.name, dataset)
