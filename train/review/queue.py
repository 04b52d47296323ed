"""Which rows of a scored output a person reads, in which order, and why each is there."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from batch.contract.contract import Contract
from batch.errors import InputError
from train.decisions import Asked
from train.evaluation.from_scored import check_kinds, read_scored
from train.labelling.candidates import most_worth

Order = Literal["worth", "queue"]


@dataclasses.dataclass(frozen=True)
class Item:
    """A request to decide. `answer` and `scores` are the model's; empty for a row in error."""

    id: str
    request: str
    answer: Mapping[str, Any]
    scores: Mapping[str, float]
    seconds: Mapping[
        str, tuple[Any, float]
    ]  # the fields' second values with their probabilities, where known
    adapter: str | None
    why: tuple[str, ...]
    # Of a row drawn at random from those that need no person, to measure them: its `run`, the `share` drawn.
    audit: Mapping[str, Any] | None = None
    overlap: bool = False  # read blind by a second reviewer

    @property
    def asked(self) -> Asked:
        return self.id, self.request


@dataclasses.dataclass(frozen=True)
class Selection:
    """What of an output goes to people."""

    order: Order = "worth"
    audit: float = 0.0  # share of the `auto` rows
    overlap: float = 0.0  # share of the rows that a second reviewer reads blind
    # These alone, such as the disagreements of two reviewers: ids, with the texts where they are known.
    ids: frozenset[tuple[str, str | None]] | None = None
    id_column: str = "id"
    text_column: str = "request"
    prefix: str = ""


def read_items(path: Path, contract: Contract, selection: Selection, seed: str) -> list[Item]:
    """The rows of the output at `path` that are for a person, most worth a look first or as they lie there.

    Those with `triage` human (all rows, where the adapter has no threshold), and behind them the audit's
    share of the others, drawn by `seed` and id: the same rows whenever it is asked, in an order of chance, so
    that those that a reviewer gets to are a random part too. Raises `InputError`.
    """
    lines = _read(path, contract, selection, seed)
    every = [_item(line, contract, selection, seed) for line in lines]
    items = [item for item in every if not item.audit]
    sample = sorted((item for item in every if item.audit), key=lambda item: _hash(seed, item.id))
    return [*(items if selection.order == "queue" else _ranked(items)), *sample]


def _ranked(items: Sequence[Item]) -> list[Item]:
    ranked = most_worth(
        [item.scores.get("score") for item in items],
        [[reason for reason in item.why if reason.startswith("breaks ")] for item in items],
        novelty=[],
    )
    return [items[index] for index in ranked]


def drawn(seed: str, name: str, share: float) -> bool:
    """Whether the row called `name` is among a random `share` (0 to 1): a function of `seed` and
    name alone.
    """
    return _hash(seed, name) < share * 2**64


def audited(run: str, name: str, share: float) -> bool:
    """Whether the audit of that run's output draws the row called `name`."""
    return drawn(f"audit {run}", name, share)


def _hash(seed: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{name}".encode()).digest()[:8], "big")


def _read(path: Path, contract: Contract, selection: Selection, seed: str) -> list[dict[str, Any]]:
    """The rows to ask for, with the columns that are shown, under their names without the prefix."""
    prefix, names = selection.prefix, [field.name for field in contract.fields]
    numbers = ["score", *(f"{name}{end}" for name in names for end in ("_score", "_second_score"))]
    texts = ["status", "error", "error_code", "adapter", "triage"]
    values = [f"{name}{end}" for name in names for end in ("", "_model", "_second")]
    ours = {prefix + name: name for name in (*numbers, *texts, *values)}
    table = read_scored(path, selection.id_column, selection.text_column, ours)
    for name in ("score", "status", *names):
        if prefix + name not in table.columns:
            raise InputError(
                f"{path}: has no column {prefix + name!r} with texts, numbers or booleans; give an output of "
                "batch-route"
            )
    table = table.select(
        pl.col(selection.id_column).alias("id"),
        pl.col(selection.text_column).alias("request"),
        *(pl.col(column).alias(name) for column, name in ours.items() if column in table.columns),
    )
    check_kinds(table, path, numbers, texts)
    if selection.audit and "triage" not in table.columns:
        raise InputError(
            f"{path}: has no column {prefix + 'triage'!r} to draw `auto` rows by; leave out --audit"
        )
    usable = table.filter(pl.col("request").str.strip_chars().str.len_chars() > 0)
    if selection.ids is not None:
        found = usable.filter(pl.col("id").is_in([name for name, _ in selection.ids])).to_dicts()
        return [row for row in found if {(row["id"], row["request"]), (row["id"], None)} & selection.ids]
    if "triage" in table.columns:
        auto = usable.filter(pl.col("triage") == "auto")["id"] if selection.audit else ()
        chosen = [name for name in auto if audited(seed, name, selection.audit)]
        usable = usable.filter((pl.col("triage") == "human") | pl.col("id").is_in(chosen))
    return usable.to_dicts()


def _item(line: Mapping[str, Any], contract: Contract, selection: Selection, seed: str) -> Item:
    audit = line.get("triage") == "auto" and audited(seed, line["id"], selection.audit)
    names = [field.name for field in contract.fields]
    answered = line["status"] == "ok"
    # What the model said: an enforced rule may have put another value into the column.
    given = {name: _first(line.get(f"{name}_model"), line[name]) for name in names}
    answer = contract.read(given) if answered else {}
    scores = {
        name: line[column]
        for name, column in (*((name, f"{name}_score") for name in names), ("score", "score"))
        if answered and line.get(column) is not None
    }
    return Item(
        id=line["id"],
        request=line["request"],
        answer=answer,
        scores=scores,
        seconds={
            name: (line.get(f"{name}_second"), line[f"{name}_second_score"])
            for name in scores
            if line.get(f"{name}_second_score") is not None
        },
        adapter=line.get("adapter"),
        why=tuple(_reasons(line, answer, contract, audit)),
        audit={"run": seed, "share": selection.audit} if audit else None,
        overlap=drawn(f"overlap {seed}", line["id"], selection.overlap),
    )


def _reasons(
    line: Mapping[str, Any], answer: Mapping[str, Any], contract: Contract, audit: bool
) -> Sequence[str]:
    if not answer:
        return [f"no answer: {line.get('error') or line.get('error_code') or 'unknown'}"]
    reasons = [f"breaks {name}" for name in contract.violations(answer, line["request"])]
    if audit:
        reasons.append("random check of rows that need no person")
    elif line["score"] is not None:
        reasons.append(
            f"score {line['score']:.2f}" + (" is below the threshold" if line.get("triage") else "")
        )
    return reasons


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
