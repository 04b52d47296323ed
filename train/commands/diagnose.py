"""`batch-train diagnose`: why an adapter is wrong where it is wrong."""

from pathlib import Path

import click

from batch.adapter.registry import Registry
from batch.completion import adapters as complete
from batch.errors import DatasetError, InputError
from batch.reporting.console import PlainConsole
from train.commands.options import PATH, json_option
from train.dataset import load_rows, split_path
from train.diagnosis.examine import examine
from train.diagnosis.tables import show_diagnoses
from train.evaluation.ask import candidates
from train.files import write_json


@click.command()
@click.argument("adapters", metavar="ADAPTER[,ADAPTER...]", shell_complete=complete)
@click.argument("dataset", type=PATH)
@click.option(
    "--train",
    type=PATH,
    help="The rows that ADAPTER was trained on.  [default: those that its manifest names]",
)
@json_option
def diagnose(adapters: str, dataset: Path, train: Path | None, json_path: Path | None) -> None:
    """Explain ADAPTER's mistakes.

    Groups ADAPTER's mistakes on DATASET, lists words that go with labels in its training rows and examples
    that these rows lack, and asks contrast probes generated from the contract: how often is a label answered
    although the text has none of the words that its rule requires? Examined are the model's own answers,
    before any rule corrects them.
    """
    names = [name.strip() for name in adapters.split(",") if name.strip()]
    if not names:
        raise InputError("no adapter to diagnose; name one")
    registry, console = Registry(), PlainConsole()
    subjects = candidates(names, registry)
    trains = []
    for subject in subjects:
        try:
            path = train or (split_path(subject.bundle, "train") if subject.bundle else None)
        except DatasetError as error:
            console.print(f"{error}: nothing is said about its training rows", soft_wrap=True)
            path = None
        trains.append(load_rows(path, subject.contract, evaluation=True) if path else [])
    _, diagnoses = examine(subjects, [dataset], trains)
    show_diagnoses(diagnoses, console)
    if json_path:
        write_json(json_path, [each.as_json() for each in diagnoses])
