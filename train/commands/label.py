"""`batch-train lint` and `candidates`: help with labelling."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import polars as pl

from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.contract.json_text import json_line
from batch.errors import DatasetError, InputError, one_line
from batch.storage.location import write_file
from batch.storage.places import check_writable
from batch.storage.schema import is_text, readable
from train import label_studio
from train.commands.options import NAME, PATH, id_option, json_option, outlet, text_option
from train.dataset import load_rows
from train.evaluation.from_scored import BATCH, contract_of, read_scored, sources_of
from train.files import strict_json, write_json
from train.labelling.candidates import candidates as choose
from train.labelling.candidates import columns, is_blank
from train.labelling.lint import Finding
from train.labelling.lint import lint as look

ALIKE = 3  # findings of one file with the same words that are printed; --json has all


def told(found: Sequence[Finding]) -> Iterator[str]:
    """A line a finding; of a mistake that a whole file makes, the first few and how many more there are."""
    counts = Counter[tuple[str, str, str]]()
    for finding in found:
        alike = (finding.where.rpartition(":")[0], finding.kind, finding.message)
        counts[alike] += 1
        if counts[alike] <= ALIKE:
            yield str(finding)
    for (file, kind, message), count in counts.items():
        if count > ALIKE:
            yield f"{file}: {kind}: {message} (and in {count - ALIKE} more lines)"


@click.command()
@click.argument("datasets", metavar="DATASET...", nargs=-1, required=True, type=PATH)
@click.option(
    "--contract",
    type=NAME,
    default="data/contract.toml",
    show_default=True,
    help="The contract of the labels.",
)
@click.option(
    "--likeness",
    metavar="F",
    type=click.FloatRange(0.1, 1),
    default=0.6,
    show_default=True,
    help="Similarity from which two requests count as nearly the same.",
)
@json_option
def lint(datasets: tuple[Path, ...], contract: str, likeness: float, json_path: Path | None) -> None:
    """Find mistakes in labelled requests.

    Give the splits together, the training rows first.

    Errors (exit 2): labels that the contract or the policy refuses, requests that leak from one split into
    another. Hints: requests that are nearly the same, rare values, labels that the other rows contradict.
    """
    found = look(datasets, Contract.load(contract), likeness)
    for line in told(found):
        click.echo(one_line(line))
    if json_path:
        write_json(json_path, [dataclasses.asdict(finding) for finding in found])
    errors = sum(finding.error for finding in found)
    if errors:
        raise DatasetError(f"{errors} lines that training refuses; correct them")
    click.echo(f"{len(found)} hints, no errors")


@click.command()
@click.argument("scored", type=PATH)
@click.option(
    "-n", "count", metavar="N", type=click.IntRange(1), default=50, show_default=True, help="Rows at most."
)
@click.option(
    "--labelled", multiple=True, type=PATH, help="Rows that have labels already; may be given more than once."
)
@outlet("--out", help="Write the rows here.  [default: print them]")
@click.option(
    "--contract",
    type=NAME,
    help="The rows' contract.  [default: that of the adapter that wrote SCORED, else data/contract.toml]",
)
@id_option
@text_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "label-studio"]),
    default="jsonl",
    show_default=True,
    help="label-studio: tasks for --out FILE.json, and the labelling page next to it as FILE.xml.",
)
def candidates(
    scored: Path,
    count: int,
    labelled: tuple[Path, ...],
    out: Path | None,
    contract: str | None,
    id_column: str,
    text_column: str,
    kind: str,
) -> None:
    """Choose the rows most worth labelling next.

    Reads SCORED, an output of `batch-route`, and writes JSONL to fill in. Low scores, answers that break a
    rule and requests unlike any labelled one take turns. Each row has the model's answer under `suggested`
    and the reasons under `why`; it is a dataset row once its nulls are filled in. A file in which some are is
    not written over.
    """
    studio = kind == "label-studio"
    if studio and (out is None or out.suffix != ".json"):
        raise InputError("--format label-studio writes two files; name the first with --out FILE.json")
    rules = contract_of(adapters_of(scored), Registry(), contract)
    if out:
        _refuse_labels(out, studio, rules)
    page = _page(out, rules) if studio and out else None
    table = read_scored(scored, id_column, text_column, columns(rules))
    rows = [row for path in labelled for row in load_rows(path, rules, evaluation=True, decisions=True)]
    chosen = choose(table, scored, rows, rules, count, id_column, text_column)
    if page and out:
        write_json(out, label_studio.tasks(chosen, rules))
        write_file(page, label_studio.page(rules).encode())
        click.echo(f"{len(chosen)} tasks in {out}; {page} is their labelling page")
        return
    text = "".join(map(json_line, chosen))
    if out:
        write_file(out, text.encode())
        click.echo(f"{len(chosen)} rows in {out}: fill in the nulls, then batch-train lint {out}")
    else:
        click.echo(text, nl=False)


def adapters_of(scored: Path) -> pl.DataFrame:
    """The column of the adapters alone, each once: ids and texts are large, and read with those that the
    contract names.
    """
    column = "adapter"
    digests = {
        digest
        for source in sources_of(scored)
        if column in source.schema.names and is_text(source.schema.field(column).type)
        for batch in source.batches(size=BATCH, columns=[column])
        for digest in readable(batch.column(column))
    }
    return pl.DataFrame({column: list(digests)}, schema={column: pl.String})


def _refuse_labels(out: Path, studio: bool, contract: Contract) -> None:
    """Only candidates without a label may be written over: labels are somebody's hours. Raises
    `InputError`.
    """
    if not os.path.isfile(out) or not os.path.getsize(out):
        return
    try:
        text = out.read_text(encoding="utf-8-sig")
        if studio:
            tasks = strict_json(text)
            blank = isinstance(tasks, list) and all(map(label_studio.is_task, tasks))
        else:
            lines = (strict_json(line) for line in text.split("\n") if line.strip())
            blank = all(is_blank(row, contract) for row in lines)
    except (OSError, ValueError):
        blank = False
    if not blank:
        raise InputError(f"{out} holds labels, or is another file; choose another --out")


def _page(tasks: Path, contract: Contract) -> Path:
    """Where the labelling page goes. Raises `InputError` where another file has that name, which nobody
    gave.
    """
    page = tasks.with_suffix(".xml")
    if os.path.lexists(page) and not _holds(page, label_studio.page(contract).encode()):
        raise InputError(f"{page} exists and is not this contract's labelling page; choose another --out")
    check_writable(page, "the labelling page")
    return page


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False
