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
from train.likeness import NEAR_DUPLICATE, shingles


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
    lines = usable.unique(text_column, keep="first", maintain_order=True).to_dicts()
    if not lines:
        return []
    novelty = _novelty([line[text_column] for line in lines], [row.request for row in labelled])
    broken = [_violations(line, line[text_column], contract) for line in lines]
    order = most_worth(
        [line["score"] for line in lines],
        broken,
        novelty if labelled else [],
    )
    chosen = []
    taken = [shingles(row.request) for row in labelled]
    for i in order:
        own = shingles(lines[i][text_column])
        if any(len(own & other) / len(own | other) >= NEAR_DUPLICATE for other in taken):
            continue
        taken.append(own)
        why = [
            f"score {lines[i]['score']:.2f}"
            if lines[i]["score"] is not None
            else f"error {lines[i].get('error_code')}"
        ]
        why += [f"breaks {name}" for name in broken[i]]
        why += [f"novelty {novelty[i]:.2f}"] if labelled else []
        names = [field.name for field in contract.fields]
        suggested = {name: lines[i][name] for name in names}
        row = {
            "id": lines[i][id_column],
            "request": lines[i][text_column],
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
    if not labelled:
        return [0.0] * len(texts)
    every = [*texts, *labelled]
    vectors = vectoriser(every).fit_transform(every)
    near = (vectors[: len(texts)] @ vectors[len(texts) :].T).max(axis=1).toarray()
    return [float(value) for value in 1.0 - np.clip(near.ravel(), 0.0, 1.0)]


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
