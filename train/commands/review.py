"""`batch-train review`, `agreement`, `apply-reviews` and `audit`: people in the loop."""

import getpass
import os
from pathlib import Path

import click

from batch.cli_errors import Number
from batch.contract.contract import Contract
from batch.contract.json_text import json_line
from batch.errors import EXIT_TOO_MANY_ERRORS, InputError, one_line
from batch.storage.location import write_file
from batch.storage.places import WRITTEN, refuse_others
from train.commands.options import NAME, PATH, id_option, outlet, writable
from train.dataset import load_rows
from train.decisions import DecisionLog
from train.review import apply as people
from train.review.agreement import agreement as compare
from train.review.audit import audit as count
from train.review.audit import refuse_twice, write_audit
from train.review.queue import Selection, read_items
from train.review.serve import (
    columns_of,
    decisions_in,
    examples_of,
    ids_in,
    reviewed,
    seed_of,
    serve,
    task_of,
)
from train.review.session import Session


def share(text: str) -> float:
    """`2%` or `0.02`."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise click.BadParameter(f"{text!r} is not a share; write 2% or 0.02")
    return value


contract_option = click.option(
    "--contract", type=NAME, help="The labels' contract.  [default: that of the adapter that wrote SCORED]"
)
text_option = click.option(
    "--text-column", metavar="NAME", type=NAME, help="Column of request texts.  [default: the run's]"
)
prefix_option = click.option("--prefix", metavar="P", default="", help="The --prefix of the run.")


@click.command()
@click.argument("scored", type=PATH)
@click.option(
    "--labels",
    required=True,
    type=PATH,
    callback=writable,
    help="File for the decisions; it is only appended to.",
)
@click.option("--reviewer", metavar="NAME", type=NAME, help="Who decides.  [default: the user's login]")
@click.option(
    "--order",
    type=click.Choice(["worth", "queue"]),
    default="worth",
    show_default=True,
    help="Most informative first, or in the order of the rows.",
)
@click.option(
    "--audit",
    type=share,
    default="0",
    metavar="SHARE",
    help="Also a random share of the `auto` rows, such as 2%.",
)
@click.option(
    "--overlap",
    type=share,
    default="0",
    metavar="SHARE",
    help="Share that a second reviewer reads without the model's answer, such as 10%.",
)
@click.option("--only", type=PATH, help="Only the ids in this JSONL file, such as `agreement --out` writes.")
@click.option(
    "--examples",
    type=PATH,
    help="Labelled rows to propose facts and texts from.  [default: the adapter's training rows]",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1.  [default: any free one]"
)
@contract_option
@id_option
@text_option
@prefix_option
def review(
    scored: Path,
    labels: Path,
    reviewer: str | None,
    order: str,
    audit: float,
    overlap: float,
    only: Path | None,
    examples: Path | None,
    port: int,
    contract: str | None,
    id_column: str,
    text_column: str | None,
    prefix: str,
) -> None:
    """Decide the `human` rows on a local page.

    SCORED is an output of `batch-route`. Each decision is saved at once, as a row that `lint` and `fit`
    accept. Stop with Ctrl-C; run it again to go on.
    """
    task = task_of(scored, contract, prefix)
    ids = ids_in(only) if only else None
    columns = columns_of(scored, id_column, text_column)
    selection = Selection(order, audit, overlap, ids, *columns, prefix)  # type: ignore[arg-type]
    items = read_items(scored, task.contract, selection, seed_of(scored))
    reviewer, rows = reviewer or _login(), examples_of(task, examples)
    session = Session(items, task.contract, DecisionLog(labels), reviewer, rows)
    serve(
        session,
        port,
        lambda address: click.echo(f"{len(items)} requests for people. Open {address}\nStop with Ctrl-C."),
    )
    done = session.state()["done"]
    click.echo(
        f"{labels}: {done.get('label', 0)} labelled, {done.get('unsure', 0)} unsure, "
        f"{done.get('skip', 0)} skipped by you"
    )


def _login() -> str:
    """The user's name. Raises `InputError` where there is none, as in a container under a bare number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise InputError("the user has no login name; say who decides with --reviewer") from error


@click.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option(
    "--contract", type=NAME, default="data/contract.toml", show_default=True, help="The labels' contract."
)
@outlet("--out", help="Write the disagreements here, for `review --only`.")
def agreement(first: Path, second: Path, contract: str, out: Path | None) -> None:
    """Measure how far two reviewers agree.

    Cohen's kappa of their files for each field, with its 95 % interval.
    """
    rules = Contract.load(contract)
    one, other = (load_rows(path, rules, evaluation=True, decisions=True) for path in (first, second))
    lines, differing = compare(one, other, rules)
    for line in lines:
        click.echo(one_line(str(line)))
    click.echo(f"{len(differing)} requests have different labels")
    if out:
        write_file(out, "".join(map(json_line, differing)).encode())


@click.command("apply-reviews")
@click.argument("scored", type=PATH)
@click.argument("labels", type=PATH, nargs=-1, required=True)
@click.argument("final", type=PATH)
@contract_option
@id_option
@text_option
@prefix_option
def apply_reviews(
    scored: Path,
    labels: tuple[Path, ...],
    final: Path,
    contract: str | None,
    id_column: str,
    text_column: str | None,
    prefix: str,
) -> None:
    """Write people's answers into a copy of SCORED.

    The copy is FINAL; its column `answered_by` names the reviewer of each row, or `model`. Decisions on rows
    that SCORED does not have are left out and counted.
    """
    people.check_final(final, [scored, *labels], prefix)
    task = task_of(scored, contract, prefix)
    rows = reviewed(labels, task.contract)
    columns = columns_of(scored, id_column, text_column)
    done = people.apply_reviews(scored, rows, final, task.contract, *columns, prefix)
    others = len(rows) - done.answered
    click.echo(
        f"{final}: {done.rows} rows, {done.answered} answered by people, {done.changed} of them changed"
        + (f"; left out: {others} decisions on rows that {scored} does not have" if others else "")
    )


@click.command()
@click.argument("scored", type=PATH, nargs=-1, required=True)
@click.option(
    "--labels", type=PATH, multiple=True, required=True, help="Decisions; may be given more than once."
)
@click.option("--nights", type=click.IntRange(1), help="Only the N newest of the outputs given.")
@click.option(
    "--target-error",
    metavar="F",
    type=Number(0, 1),
    help="Share of wrong rows allowed.  [default: that of the adapter's threshold]",
)
@outlet("--metrics", help="Write a Prometheus textfile.")
@contract_option
@id_option
@text_option
@prefix_option
def audit(
    scored: tuple[Path, ...],
    labels: tuple[Path, ...],
    nights: int | None,
    target_error: float | None,
    metrics: Path | None,
    contract: str | None,
    id_column: str,
    text_column: str | None,
    prefix: str,
) -> None:
    """Count errors among the `auto` rows.

    Counts the rows that `review --audit` drew, each for the output that it was drawn from, over one or more
    nights. Exit 3 if more of them are wrong than the target allows; fewer than 20 rows are no statement
    (exit 0).
    """
    refuse_twice(scored)
    if metrics:
        refuse_others("--metrics", metrics, *WRITTEN["--metrics"])
    outputs = sorted(scored, key=lambda path: path.stat().st_mtime if os.path.exists(path) else 0.0)[
        -(nights or len(scored)) :
    ]
    task = task_of(outputs[-1], contract, prefix)
    known = task.bundle.calibration.target_error if task.bundle else None
    target = known if target_error is None else target_error
    if target is None:
        raise InputError("the adapter has no threshold and so no error target; name one with --target-error")
    rows = [row for row, _ in reviewed(labels, task.contract)]
    decisions = [decisions_in(path) for path in labels]
    found = count(outputs, rows, decisions, task.contract, target, id_column, text_column, prefix)
    for night in found.nights:
        click.echo(str(night))
    click.echo(found.verdict)
    if metrics:
        write_audit(metrics, found)
    if found.holds is False:
        raise SystemExit(EXIT_TOO_MANY_ERRORS)
