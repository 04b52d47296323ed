"""`batch-train loop`: versions of the data, fitted and judged side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from batch.adapter.base_model import resolve_base
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import InputError, one_line
from batch.reporting.console import PlainConsole
from train.commands.options import PATH, json_option
from train.config import Config
from train.dataset import load_rows
from train.diagnosis.examine import examine
from train.diagnosis.loop import fit_versions, verdict
from train.diagnosis.tables import show_diagnoses
from train.evaluation.ask import candidate, check_chosen_alias
from train.evaluation.evaluate import comparisons
from train.evaluation.tables import show_measures
from train.evaluation.task import task
from train.files import write_json
from train.fit.base_checks import checked_renderer
from train.fit.inputs import load_splits


@click.command()
@click.argument("versions", metavar="NAME=CONFIG[,NAME=CONFIG...]")
@click.argument("datasets", metavar="DATASET...", nargs=-1, required=True, type=PATH)
@json_option
def loop(versions: str, datasets: tuple[Path, ...], json_path: Path | None) -> None:
    """Fit versions of the data and show what changed.

    The first DATASET is also diagnosed, with contrast probes. Exit 2 if the last version answers a rule's
    label in more than 5 % of its requests that do not mention the rule's words (of all, or under the first
    version's worst condition), finds the label in fewer rows that name it than the first version, or is
    significantly worse in a field on any DATASET (exact McNemar). Each adapter gets its NAME as an alias.
    """
    pairs = [version.strip().partition("=") for version in versions.split(",")]
    if any(not config for _, _, config in pairs) or len({name for name, _, _ in pairs}) < max(2, len(pairs)):
        raise InputError(
            f"{versions!r} must be two versions at least, each with its own name, such as "
            "v1=train/mini.toml,v2=train/mini-v2.toml"
        )
    for name, _, _ in pairs:
        check_chosen_alias(name)
        if name == "latest":
            raise InputError("alias latest: each fit moves it; choose another name for the version")
    registry, console = Registry(), PlainConsole()
    recipes = {name: Config.load(config) for name, _, config in pairs}
    contracts = {name: _check(recipe, datasets) for name, recipe in recipes.items()}
    (first, wanted), *others = contracts.items()
    for name, contract in others:
        if task(contract) != task(wanted):
            raise InputError(
                f"{name} has other fields or labels than {first}, so nothing can be compared; give both "
                "the same"
            )
    fit_versions(recipes, registry, PlainConsole(stderr=True))
    subjects = [candidate(name, registry) for name in recipes]
    trains = [
        load_rows(recipe.find(recipe.data.train), s.contract)
        for recipe, s in zip(recipes.values(), subjects, strict=True)
    ]
    evaluations, diagnoses = examine(subjects, datasets, trains)
    show_measures(evaluations, console)
    show_diagnoses(diagnoses, console)
    if json_path:
        groups: dict[str, Any] = {
            "evaluations": evaluations,
            "comparisons": comparisons(evaluations),
            "diagnoses": diagnoses,
        }
        write_json(json_path, {name: [each.as_json() for each in group] for name, group in groups.items()})
    for line in verdict(evaluations, diagnoses):
        click.echo(one_line(line))


def _check(recipe: Config, datasets: Sequence[Path]) -> Contract:
    """What can be refused of a recipe and of the rows that its fit is judged on, before anything is trained.
    Raises `ConfigError`, `ContractError`, `DatasetError` or `AdapterError`.
    """
    contract = Contract.load(recipe.find(recipe.data.contract))
    for path in datasets:
        load_rows(path, contract, evaluation=True)
    base = resolve_base(recipe.base.model, recipe.base.revision, near=recipe.path)
    load_splits(recipe, contract, checked_renderer(base, contract))
    return contract
