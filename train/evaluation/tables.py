"""Evaluations as tables for people, and as JSON for programs."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batch.reporting.console import PlainConsole
from train.evaluation.baselines import BASELINES
from train.evaluation.evaluate import ALL, CHECKS, Comparison, Evaluation, comparisons
from train.evaluation.statistics import Proportion

MISSES_SHOWN = 20
CONFUSIONS_SHOWN = 12


def show(evaluations: Sequence[Evaluation], console: Console) -> None:
    """For each dataset its adapters side by side with 95 % intervals, and whether they can be told apart;
    then what each adapter got wrong. Baselines' misses are left out."""
    show_measures(evaluations, console)
    for evaluation in evaluations:
        if evaluation.misses and evaluation.adapter not in BASELINES:
            console.print(_confusions(evaluation))
            console.print(_misses(evaluation))
            if len(evaluation.misses) > MISSES_SHOWN:
                console.print(f"and {len(evaluation.misses) - MISSES_SHOWN} more; --json writes all of them")


def show_measures(evaluations: Sequence[Evaluation], console: Console) -> None:
    """The tables, and on stderr which of them flatter."""
    warn_of_seen(evaluations)
    for dataset in dict.fromkeys(evaluation.dataset for evaluation in evaluations):
        group = [evaluation for evaluation in evaluations if evaluation.dataset == dataset]
        console.print(measures_table(group))
        if len(group) > 1:
            console.print(comparison_table(comparisons(group)))


def warn_of_seen(evaluations: Sequence[Evaluation]) -> None:
    for each in evaluations:
        if each.seen:
            PlainConsole(stderr=True).print(
                f"Warning: {each.seen} of {len(each.all_right)} rows of {each.dataset} are like rows that "
                f"{each.adapter} was trained on: it does better on those than on others",
                soft_wrap=True,
            )


def measures_table(group: Sequence[Evaluation]) -> Table:
    """Evaluations of one dataset, a column each: what is right, macro-F1, and what was let through."""
    table = Table(
        title=f"{Path(group[0].dataset).name}, {group[0].measures['parsed'].of} rows", title_justify="left"
    )
    table.add_column("right, of, 95 % interval")
    for evaluation in group:
        table.add_column(evaluation.adapter, justify="right", no_wrap=True)
    # an interval below its count, and shorter: three and four columns fit into 80 characters
    between, to = "\n" if len(group) > 2 else "  ", " to " if len(group) < 4 else "–"

    def cells(name: str, found: Sequence[Mapping[str, Proportion]]) -> list[str]:
        told = [str(each[name]) if name in each else "" for each in found]
        return [text.replace("  ", between).replace(" to ", to) for text in told]

    for name in dict.fromkeys(name for evaluation in group for name in evaluation.measures):
        # The checks of one row depend on each other, so an interval over them would be too narrow.
        table.add_row(
            name,
            *(c.split(between)[0] if name == CHECKS else c for c in cells(name, [e.measures for e in group])),
        )
    table.add_section()
    for name in dict.fromkeys(name for evaluation in group for name in evaluation.f1):
        table.add_row(f"macro-F1 {name}", *(f"{e.f1[name]:.3f}" if name in e.f1 else "" for e in group))
    table.add_section()
    for name in dict.fromkeys(name for evaluation in group for name in evaluation.under_escalation):
        table.add_row(
            f"let through, {name} (fewer is better)", *cells(name, [e.under_escalation for e in group])
        )
    return table


def comparison_table(pairs: Sequence[Comparison]) -> Table:
    """Of each pair a line on `all fields right`, and on each field in which the two can be told apart."""
    table = Table(
        title="paired, exact McNemar: rows that only one of the two has right", title_justify="left"
    )
    table.add_column("first : second", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("")
    for pair in pairs:
        table.add_section()
        table.add_row(f"{pair.first} : {pair.second}")
        for name, test in pair.tests.items():
            if name == ALL or test.distinguishable:
                table.add_row(f"  {name}", f"{test.first} : {test.second}", f"{test.p:.3g}", test.verdict)
    return table


def _confusions(evaluation: Evaluation) -> Table:
    """The commonest wrong answers; the whole matrices are in the JSON."""
    table = Table(
        title=f"{evaluation.adapter} on {Path(evaluation.dataset).name}: confused", title_justify="left"
    )
    for column in ("field", "gold", "answered", "rows"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    wrong = [
        (rows, field, gold, answered)
        for field, cells in evaluation.confusion.items()
        for (gold, answered), rows in cells.items()
        if gold != answered
    ]
    for rows, field, gold, answered in sorted(wrong, key=lambda cell: -cell[0])[:CONFUSIONS_SHOWN]:
        table.add_row(*map(Text, (field, gold, answered or "(no answer)", str(rows))))
    return table


def _misses(evaluation: Evaluation) -> Table:
    table = Table(
        title=f"{evaluation.adapter} on {Path(evaluation.dataset).name}: wrong", title_justify="left"
    )
    for column, options in (
        ("request", {"ratio": 2}),
        ("field", {"no_wrap": True}),
        ("gold", {}),
        ("answered", {}),
    ):
        table.add_column(column, **options)  # type: ignore[arg-type]
    previous = None
    for miss in evaluation.misses[:MISSES_SHOWN]:
        request = f"{miss.id}: {miss.request}" if miss.id != previous else ""
        answered = f"({miss.error})" if miss.error else str(miss.predicted)
        # `Text`: a request is data, and "[bold]" in it is not markup.
        table.add_row(*map(Text, (textwrap.shorten(request, 72), miss.field, miss.gold, answered)))
        previous = miss.id
    return table


def as_json(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What `eval --json` writes: every figure, confusion matrix and miss, and each pair's test."""
    return {
        "interval": "95 % Wilson score",
        "evaluations": [evaluation.as_json() for evaluation in evaluations],
        "comparisons": [pair.as_json() for pair in comparisons(evaluations)],
    }
