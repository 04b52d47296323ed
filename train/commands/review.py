"""`batch-train review`, `agreement`, `apply-reviews`, `audit` and `improve`: people in the loop."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
SHARE = click.FloatRange(0, 1)


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
    "--contract", help="The labels' contract.  [default: that of the adapter that wrote SCORED]"
)
id_option = click.option("--id-column", metavar="NAME", default="id", show_default=True)
prefix_option = click.option("--prefix", metavar="P", default="", help="What --prefix was in the run.")


@click.command()
@click.argument("scored", type=PATH)
@click.option(
    "--labels", required=True, type=PATH, help="Keep the decisions in this file; it is only added to."
)
@click.option("--reviewer", metavar="NAME", help="Who decides.  [default: the user's login]")
@click.option(
    "--order",
    type=click.Choice(["worth", "queue"]),
    default="worth",
    show_default=True,
    help="Most worth a look first, or as the rows lie.",
)
@click.option(
    "--audit",
    type=share,
    default="0",
    metavar="SHARE",
    help="Also a random share of the rows that need no person, such as 2%.",
)
@click.option(
    "--overlap",
    type=share,
    default="0",
    metavar="SHARE",
    help="Share that a second reviewer reads blind, such as 10%.",
)
@click.option("--only", type=PATH, help="Only the ids in this JSONL file, such as `agreement --out` writes.")
@click.option(
    "--examples",
    type=PATH,
    help="Labelled rows to propose facts and texts from.  [default: the adapter's training rows]",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="[default: any free one]")
@contract_option
@id_option
@click.option("--text-column", metavar="NAME", default="request", show_default=True)
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
    text_column: str,
    prefix: str,
) -> None:
    """Decide on a local page what SCORED, an output of `batch-route`, leaves to people.

    Each decision is saved at once, as a row that `lint` and `fit` accept. Stop with Ctrl-C; run it again to
    go on.
    """
    import getpass

    from batch.storage.location import check_writable
    from train.decisions import DecisionLog
    from train.review.queue import Selection, read_items
    from train.review.serve import examples_of, ids_in, seed_of, serve, task_of
    from train.review.session import Session

    check_writable(labels, "--labels")
    task = task_of(scored, contract, prefix)
    ids = ids_in(only) if only else None
    selection = Selection(order, audit, overlap, ids, id_column, text_column, prefix)  # type: ignore[arg-type]
    items = read_items(scored, task.contract, selection, seed_of(scored))
    log = DecisionLog(labels)
    session = Session(items, task.contract, log, reviewer or getpass.getuser(), examples_of(task, examples))
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


@click.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option("--contract", default="data/contract.toml", show_default=True)
@click.option("--out", type=PATH, help="Write the disagreements here, for `review --only`.")
def agreement(first: Path, second: Path, contract: str, out: Path | None) -> None:
    """How far two reviewers' files agree: Cohen's kappa for each field, with its 95 % interval."""
    import json

    from batch.contract.contract import Contract
    from batch.storage.location import check_writable, write_file
    from train.dataset import load_rows
    from train.review.agreement import agreement as compare

    if out:
        check_writable(out, "--out")
    rules = Contract.load(contract)
    lines, differing = compare(
        load_rows(first, rules, evaluation=True), load_rows(second, rules, evaluation=True), rules
    )
    for line in lines:
        click.echo(str(line))
    click.echo(f"{len(differing)} requests have different labels")
    if out:
        write_file(out, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in differing).encode())


@click.command("apply-reviews")
@click.argument("scored", type=PATH)
@click.argument("labels", type=PATH, nargs=-1, required=True)
@click.argument("final", type=PATH)
@contract_option
@id_option
@prefix_option
def apply_reviews(
    scored: Path, labels: tuple[Path, ...], final: Path, contract: str | None, id_column: str, prefix: str
) -> None:
    """Write a copy of SCORED with people's answers in it to FINAL; `answered_by` says whose each row is."""
    from batch.storage.location import check_writable
    from train.review.apply import apply_reviews as write
    from train.review.serve import reviewed, task_of

    check_writable(final)
    task = task_of(scored, contract, prefix)
    done = write(scored, reviewed(labels, task.contract), final, task.contract, id_column, prefix)
    click.echo(
        f"{final}: {done.rows} rows, {done.answered} answered by people, {done.changed} of them changed"
    )


@click.command()
@click.argument("scored", type=PATH, nargs=-1, required=True)
@click.option(
    "--labels", type=PATH, multiple=True, required=True, help="Decisions; may be given more than once."
)
@click.option("--nights", type=click.IntRange(1), help="Of the outputs given, the last N by time only.")
@click.option("--target-error", metavar="F", type=SHARE, help="[default: what the adapter's threshold keeps]")
@click.option("--metrics", type=PATH, help="Write a Prometheus textfile.")
@contract_option
@id_option
@prefix_option
def audit(
    scored: tuple[Path, ...],
    labels: tuple[Path, ...],
    nights: int | None,
    target_error: float | None,
    metrics: Path | None,
    contract: str | None,
    id_column: str,
    prefix: str,
) -> None:
    """Of the rows that needed no person, how many were wrong? Exit 3 where it is more than the target allows.

    Counts the rows that `review --audit` drew, over the outputs of one or more nights.
    """
    from batch.errors import EXIT_TOO_MANY_ERRORS
    from batch.storage.location import check_writable
    from train.review.audit import audit as count
    from train.review.audit import write_metrics
    from train.review.serve import reviewed, target_of, task_of

    if metrics:
        check_writable(metrics, "--metrics")
    outputs = sorted(scored, key=lambda path: path.stat().st_mtime if path.exists() else 0.0)[
        -(nights or len(scored)) :
    ]
    task = task_of(outputs[-1], contract, prefix)
    target = target_of(task) if target_error is None else target_error
    rows = [row for row, _ in reviewed(labels, task.contract, audited=True)]
    found = count(outputs, rows, task.contract, target, id_column=id_column, prefix=prefix)
    for night in found.nights:
        click.echo(
            f"{night.name}: {night.auto} rows without a person, {night.wrong.count} of "
            f"{night.wrong.of} audited wrong"
        )
    click.echo(found.verdict)
    if metrics:
        write_metrics(metrics, found)
    if found.holds is False:
        raise SystemExit(EXIT_TOO_MANY_ERRORS)


@click.command()
@click.argument("config", type=PATH)
@click.argument("labels", type=PATH, nargs=-1, required=True)
@click.option(
    "--beside", type=PATH, multiple=True, help="Rows that measure: nothing like them is trained on."
)
@click.option(
    "--out", type=PATH, default=Path("reviewed"), show_default=True, help="Folder of the new training rows."
)
@click.option("--promote/--no-promote", default=True, help="Make it the champion if it passes the gates.")
def improve(
    config: Path, labels: tuple[Path, ...], beside: tuple[Path, ...], out: Path, promote: bool
) -> None:
    """Fit CONFIG's adapter again with the reviewed rows, compare it with the champion, promote it through the
    gates.
    """
    from rich.console import Console

    from train.config import Config
    from train.review.improve import extend, fit_and_compare

    extended = extend(Config.load(config), labels, out, beside)
    click.echo(
        f"{extended.added} reviewed rows added to {extended.config.data.train}; left out: "
        f"{extended.measuring} like a row "
        f"that measures, {extended.known} known already"
    )
    fit_and_compare(extended.config, Console(highlight=False), beside, promote)
