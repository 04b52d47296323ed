"""Diagnoses as tables for people: adapters side by side, so that a fix shows beside what it fixed."""

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batch.contract.fields import as_text
from train.diagnosis.diagnose import Bias, Diagnosis

GROUPS_SHOWN = 12
PROPOSALS_SHOWN = 8
ERASED_SHOWN = 8
ASSOCIATIONS_SHOWN = 6  # for each value


def show_diagnoses(diagnoses: Sequence[Diagnosis], console: Console) -> None:
    if diagnoses[0].biases:
        console.print(bias_table(diagnoses))
    for each in diagnoses:
        for bias in each.biases:
            if bias.drivers:
                drivers = ", ".join(f"{word} ({z:.1f})" for word, z in bias.drivers)
                console.print(
                    Text(f"{each.adapter}: words that go with an unmentioned {bias.label!r} (z): {drivers}")
                )
            if bias.erased:
                erased = ", ".join(
                    f"{word} {share.count}/{share.of}" for word, share in bias.erased[:ERASED_SHOWN]
                )
                console.print(Text(f"{each.adapter}: without these words it was gone: {erased}"))
        if each.misses:
            console.print(_misses(each))
        if each.associations:
            console.print(_associations(each))
        for line in each.proposals[:PROPOSALS_SHOWN]:
            console.print(Text(f"{each.adapter}: missing examples? {line}"), soft_wrap=True)
        if len(each.proposals) > PROPOSALS_SHOWN:
            console.print(f"and {len(each.proposals) - PROPOSALS_SHOWN} more; --json writes all of them")


def bias_table(diagnoses: Sequence[Diagnosis]) -> Table:
    """For each mention rule, source and condition: how often its label is answered, with 95 % Wilson
    intervals; a dash where an adapter's contract has no such rule.
    """
    table = Table(title="P(label | mention), 95 % interval", title_justify="left")
    table.add_column("label, where, condition")
    for each in diagnoses:
        table.add_column(each.adapter, justify="right", no_wrap=True)
    rules: dict[str, Bias] = {}
    for bias in (bias for each in diagnoses for bias in each.biases):
        rules.setdefault(bias.rule, bias)
    for rule, bias in rules.items():
        columns = [each.bias(rule) for each in diagnoses]
        table.add_section()
        table.add_row(Text(bias.label, style="bold"))
        for rate in bias.rates:
            condition = "" if rate.condition == "any" else f", {rate.condition}"
            cells = [str(column.rate(rate.source, rate.condition)) if column else "-" for column in columns]
            table.add_row(Text(f"{rate.source}: not mentioned{condition}"), *cells)
        for source in bias.named:
            table.add_row(
                Text(f"{source}: named, and right"),
                *(str(column.named.get(source, "-")) if column else "-" for column in columns),
            )
    return table


def _misses(diagnosis: Diagnosis) -> Table:
    table = Table(title=f"{diagnosis.adapter} on {diagnosis.dataset}: groups of misses", title_justify="left")
    for column in ("field", "gold", "answered", "facts", "rows", "trained"):
        table.add_column(column, justify="right" if column in ("rows", "trained") else "left")
    for group in diagnosis.misses[:GROUPS_SHOWN]:
        facts = ", ".join(
            f"{name} {as_text(value)}"
            for name, value in group["facts"].items()
            if value not in (False, "none")
        )
        cells = (
            group["field"],
            group["gold"],
            group["answered"] or "(no answer)",
            facts,
            str(group["rows"]),
            str(group["trained"]),
        )
        table.add_row(*map(Text, cells))
    return table


def _associations(diagnosis: Diagnosis) -> Table:
    """A line for each value: its words, and in how many of the training rows with the word it is
    the answer.
    """
    table = Table(
        title=f"{diagnosis.adapter}: what its training rows may teach instead", title_justify="left"
    )
    for column in ("field", "value", "words: rows with the value, of rows with the word"):
        table.add_column(column)
    for field, value in dict.fromkeys((each.field, each.value) for each in diagnosis.associations):
        own = [each for each in diagnosis.associations if (each.field, each.value) == (field, value)][
            :ASSOCIATIONS_SHOWN
        ]
        shown = ", ".join(f"{each.word} {each.with_value}/{each.with_word}" for each in own)
        table.add_row(*map(Text, (field, value, textwrap.shorten(shown, 110))))
    return table
