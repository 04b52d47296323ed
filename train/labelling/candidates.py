"""Which rows of a scored backlog are most worth labelling next: those that teach something.

Three rankings take turns: low score (uncertainty sampling, Lewis and Gale 1994), answers that break the
contract's rules, and requests unlike any labelled one. A request nearly equal to one that is labelled or
chosen already is passed over.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from batch.contract.contract import Contract
from batch.errors import InputError
from train.dataset import Row
from train.evaluation.baselines import vectoriser
from train.evaluation.from_scored import check_kinds
from train.likeness import Likeness

BLOCK = 1024  # texts compared with the labelled ones at a time


def columns(contract: Contract) -> set[str]:
    """What :func:`candidates` reads of a scored output beside ids and texts."""
    names = [field.name for field in contract.fields]
    return {"score", "error_code", *names, *(f"{name}_model" for name in names)}


def candidates(
    table: pl.DataFrame,
    path: Path,
    labelled: Sequence[Row],
    contract: Contract,
    n: int,
    id_column: str,
    text_column: str,
) -> list[dict[str, Any]]:
    """At most `n` rows as dataset rows to fill in: each field null, the model's answer under `suggested`, and
    `why`.

    Raises `InputError` for a table without the columns of a scored output.
    """
    for name in (text_column, "score", *(field.name for field in contract.fields)):
        if name not in table.columns:
            raise InputError(
                f"{path}: has no column {name!r} with texts, numbers or booleans; give a scored output, and "
                "its text column with --text-column"
            )
    check_kinds(table, path, ["score"], ["error_code"])
    usable = table.filter(pl.col(text_column).str.strip_chars().str.len_chars() > 0)
    usable = usable.unique(text_column, keep="first", maintain_order=True)
    if usable.is_empty():
        return []
    known = [row.request for row in labelled]
    novelty = _novelty(usable[text_column].to_list(), known) if labelled else []
    broken = [_violations(line, line[text_column], contract) for line in usable.iter_rows(named=True)]
    taken = Likeness.of(known)
    chosen: list[dict[str, Any]] = []
    for i in most_worth(usable["score"].to_list(), broken, novelty):
        line = usable.row(i, named=True)
        if taken.nearest(line[text_column]):
            continue
        taken.add(line[text_column])
        why = [
            f"score {line['score']:.2f}" if line["score"] is not None else f"error {line.get('error_code')}"
        ]
        why += [f"breaks {name}" for name in broken[i]]
        why += [f"novelty {novelty[i]:.2f}"] if labelled else []
        names = [field.name for field in contract.fields]
        suggested = {name: line[name] for name in names}
        row = {
            "id": line[id_column],
            "request": line[text_column],
            **dict.fromkeys(names),
            "suggested": suggested,
            **({} if "why" in names else {"why": why}),
        }
        chosen.append(row)
        if len(chosen) == n:
            break
    return chosen


def is_blank(row: Any, contract: Contract) -> bool:
    """Whether it is a row of :func:`candidates` in which nobody has filled in anything."""
    notes = {"id", "request", "suggested", "why"} - {field.name for field in contract.fields}
    return (
        isinstance(row, dict)
        and "suggested" in row
        and all(value is None for name, value in row.items() if name not in notes)
    )


def most_worth(
    scores: Sequence[float | None],
    broken: Sequence[Sequence[str]],
    novelty: Sequence[float],
) -> list[int]:
    """Indices of rows, the most worth a look first: broken rules, doubt and novelty take turns.

    `scores` are None for rows in error, `broken` holds the rules that each answer breaks, `novelty` may be
    empty.
    """
    doubt = [1.0 if score is None else 1.0 - score for score in scores]
    everything = range(len(scores))
    rankings = [
        sorted(everything, key=lambda i: -doubt[i]),
        sorted((i for i in everything if broken[i]), key=lambda i: (-len(broken[i]), -doubt[i])),
        sorted(everything, key=lambda i: -novelty[i]) if novelty else [],
    ]
    return list(_in_turn(rankings))


def _violations(line: Mapping[str, Any], request: str, contract: Contract) -> list[str]:
    """Rules that the model's own answer breaks, whether or not the run corrected it."""
    if line["score"] is None:
        return []
    named = {field.name: line.get(f"{field.name}_model", line[field.name]) for field in contract.fields}
    return contract.violations(contract.read(named), request)


def _novelty(texts: Sequence[str], labelled: Sequence[str]) -> list[float]:
    """One less the highest TF-IDF cosine to a labelled request, 0 to 1."""
    every = [*texts, *labelled]
    vectors = vectoriser(every).fit_transform(every)
    known = vectors[len(texts) :].T.tocsr()
    starts = range(0, len(texts), BLOCK)  # all products at once would be texts x labelled numbers
    near = [(vectors[i : min(i + BLOCK, len(texts))] @ known).max(axis=1).toarray() for i in starts]
    return [float(value) for value in 1.0 - np.clip(np.concatenate(near).ravel(), 0.0, 1.0)]


def _in_turn(rankings: Sequence[Sequence[int]]) -> Iterator[int]:
    """Each row once, the best of each ranking in turn."""
    seen: set[int] = set()
    iterators = [iter(ranking) for ranking in rankings]
    while iterators:
        for iterator in list(iterators):
            following = next((i for i in iterator if i not in seen), None)
            if following is None:
                iterators.remove(iterator)
            else:
                seen.add(following)
                yield following
