"""`batch-train eval`: adapters, baselines and scored files, judged on labelled requests."""

from collections.abc import Iterator, Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from batch.adapter.registry import Registry
from batch.completion import adapters
from batch.contract.contract import Contract
from batch.errors import InputError
from batch.reporting.console import PlainConsole
from train.commands.options import NAME, PATH, json_option
from train.config import Config
from train.dataset import load_rows
from train.evaluation.ask import candidates, judge
from train.evaluation.baselines import BASELINES
from train.evaluation.cross_validation import Fold, cross_validate_baseline, folds
from train.evaluation.evaluate import Evaluation
from train.evaluation.from_scored import judge_scored, read_scored, scored_task, text_column_of
from train.evaluation.injection import attack as measure_attacks
from train.evaluation.injection import show_attacks
from train.evaluation.tables import as_json, show
from train.evaluation.task import task
from train.files import write_json
from train.tables import SUFFIXES

DATASETS = SUFFIXES | {".jsonl", ".ndjson"}


@click.command("eval")
@click.argument(
    "arguments", metavar="ADAPTER[,ADAPTER...] DATASET...", nargs=-1, required=True, shell_complete=adapters
)
@json_option
@click.option(
    "--attack",
    is_flag=True,
    help="Measure instead how often a fixed instruction, appended to each request, changes a label.",
)
@click.option(
    "--contract",
    type=NAME,
    help="The contract, for `base` and --from-scored.  "
    "[default: the adapter's beside it, else the champion's, else data/contract.toml]",
)
@click.option(
    "--base-model",
    type=NAME,
    help="The base model.  "
    "[default: the adapter's; for `base` that beside it, else the champion's, else data/mini-base]",
)
@click.option(
    "--train", type=PATH, help="Labelled rows that baselines learn from.  [default: the first adapter's own]"
)
@click.option(
    "--from-scored",
    type=PATH,
    help="Evaluate this output Parquet by id and text (by id where it has no text), without an engine; "
    "ADAPTER may be left out.",
)
@click.option(
    "--id-column",
    type=NAME,
    default="id",
    show_default=True,
    help="The column of ids in the --from-scored output.",
)
@click.option(
    "--text-column",
    type=NAME,
    help="The column of request texts in the --from-scored output.  [default: the run's]",
)
@click.option(
    "--cross-validate",
    metavar="K",
    type=click.IntRange(2),
    help="Evaluate each row by a model trained on the other K-1 folds.",
)
def evaluate(arguments: tuple[str, ...], json_path: Path | None, attack: bool, **options: Any) -> None:
    """Evaluate adapters and baselines on labelled requests.

    ADAPTER is a bundle directory, a digest, an alias, `base` for the base model without an adapter, or a
    baseline: `majority`, `keywords`, `tfidf`, `embedding`. Adapters answer through the path that serves
    them. With --cross-validate ADAPTER is a baseline, or a recipe (.toml) to fit per fold.
    """
    scored = options["from_scored"]
    alone = scored is not None and Path(arguments[0]).suffix.lower() in DATASETS and isfile(arguments[0])
    names = [] if alone else [name.strip() for name in arguments[0].split(",") if name.strip()]
    datasets = [Path(each) for each in (arguments if alone else arguments[1:])]
    if not datasets:
        raise InputError("no dataset to judge on; give a file of labelled requests after the adapters")
    _refuse_idle(names, attack, **options)
    console = PlainConsole()
    if attack:
        content = _attack(names, datasets, console, **options)
    else:
        results = _results(names, datasets, **options)
        show(results, console)
        content = as_json(results)
    if json_path:
        write_json(json_path, content)


def _refuse_idle(
    names: list[str], attack: bool, *, from_scored: Path | None, id_column: str, text_column: str | None,
    cross_validate: int | None, train: Path | None, base_model: str | None, contract: str | None
) -> None:  # fmt: skip
    """Options that would change nothing are a misunderstanding. Raises `InputError`."""
    if attack and (from_scored or cross_validate or not names):
        raise InputError("--attack asks adapters themselves; leave out --from-scored and --cross-validate")
    if cross_validate and from_scored:
        raise InputError("--cross-validate trains models of its own; leave out --from-scored")
    for option, given in (("--id-column", id_column != "id"), ("--text-column", text_column is not None)):
        if given and not from_scored:
            raise InputError(f"{option} is that of the --from-scored output; name that too, or leave it out")
    if train and (attack or cross_validate or BASELINES.keys().isdisjoint(names)):
        raise InputError("--train is what baselines learn from; name a baseline, or leave it out")
    if base_model and (cross_validate or BASELINES.keys() >= set(names)):
        raise InputError("--base-model is that of an adapter or of `base`; name one, or leave it out")
    if not names and not from_scored:
        raise InputError("no adapter to judge; name one, or --from-scored")


def _attack(
    names: list[str],
    datasets: list[Path],
    console: Console,
    contract: str | None,
    base_model: str | None,
    **options: Any,
) -> dict[str, Any]:
    registry = Registry()
    attacks = measure_attacks(candidates(names, registry, contract, base_model), datasets)
    show_attacks(attacks, console)
    return {"interval": "95 % Wilson score", "attacks": [each.as_json() for each in attacks]}


def _results(
    names: list[str], datasets: list[Path], contract: str | None, from_scored: Path | None, id_column: str,
    text_column: str | None, cross_validate: int | None, **options: Any
) -> list[Evaluation]:  # fmt: skip
    if cross_validate:
        return _cross_validated(names, datasets, cross_validate, contract)
    registry = Registry()
    columns = id_column, text_column
    results = _from_scored(from_scored, datasets, registry, contract, *columns) if from_scored else []
    return results + (judge(names, datasets, registry, contract, **options) if names else [])


def _from_scored(
    path: Path,
    datasets: list[Path],
    registry: Registry,
    contract: str | None,
    id_column: str,
    text_column: str | None,
) -> list[Evaluation]:
    columns = id_column, text_column_of(path, text_column)
    if not columns[1]:
        click.echo(f"Warning: {path}: has no column of texts, so rows are found by id alone", err=True)
    table = read_scored(path, *columns)
    rules, bundle = scored_task(table, registry, contract)
    gold = {dataset: load_rows(dataset, rules, evaluation=True) for dataset in datasets}
    return [
        judge_scored(table, path, rows, rules, str(dataset), *columns, bundle)
        for dataset, rows in gold.items()
    ]


def _cross_validated(
    names: list[str], datasets: list[Path], k: int, contract: str | None
) -> list[Evaluation]:
    recipes = {name: Config.load(name) for name in names if name.endswith(".toml")}
    if strange := [name for name in names if name not in BASELINES and name not in recipes]:
        raise InputError(
            f"{strange[0]} is already trained; cross-validate a recipe (.toml) or one of "
            f"{', '.join(BASELINES)}"
        )
    rules = _one_contract(recipes, contract)
    gold = {dataset: load_rows(dataset, rules) for dataset in datasets}
    parts = {dataset: folds(rows, rules, k) for dataset, rows in gold.items()}
    results = {
        (dataset, name): cross_validate_baseline(name, rows, rules, parts[dataset], str(dataset))
        for dataset, rows in gold.items()
        for name in names
        if name not in recipes
    }
    if recipes:
        results |= _recipes_judged(recipes, parts)
    return [results[dataset, name] for dataset in datasets for name in names]


def _one_contract(recipes: Mapping[str, Config], named: str | None) -> Contract:
    """The one `named`, else the first recipe's, else the shipped one. Raises `InputError` where a recipe's
    own has other fields.
    """
    contracts = {name: Contract.load(recipe.find(recipe.data.contract)) for name, recipe in recipes.items()}
    first = named or next(iter(recipes), "data/contract.toml")
    rules = Contract.load(first) if named or not recipes else contracts[first]
    for name, own in contracts.items():
        if task(own) != task(rules):
            raise InputError(
                f"{name} has other fields or labels than {first}, so no row fits both; give both the same "
                "contract"
            )
    return rules


def _recipes_judged(
    recipes: Mapping[str, Config], parts: Mapping[Path, Sequence[Fold]]
) -> Iterator[tuple[tuple[Path, str], Evaluation]]:
    """By dataset and recipe, each fitted again for each fold."""
    # Only this reads torch, which takes seconds that no other evaluation should wait for.
    from train.fit.folds import cross_validate_recipes, prepare_folds  # noqa: PLC0415

    pairs = [(dataset, name) for dataset in parts for name in recipes]
    prepared = [(prepare_folds(recipes[name], dataset), parts[dataset]) for dataset, name in pairs]
    return zip(pairs, cross_validate_recipes(prepared, PlainConsole(stderr=True)), strict=True)
