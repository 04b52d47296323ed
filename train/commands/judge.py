"""`batch-train eval`, `diagnose` and `loop`: click only, imports inside."""

from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


@click.command("eval")
@click.argument("arguments", metavar="ADAPTER[,ADAPTER...] DATASET...", nargs=-1, required=True)
@click.option(
    "--json", "json_path", type=PATH, help="Write the figures, confusion matrices and every miss here."
)
@click.option(
    "--attack",
    is_flag=True,
    help="Measure instead how often an instruction behind the request flips a label.",
)
@click.option(
    "--contract", help="For `base` and --from-scored.  [default: the champion's, else data/contract.toml]"
)
@click.option(
    "--base-model",
    help="The base model.  [default: the adapter's; for `base` the champion's, else data/mini-base]",
)
@click.option(
    "--train", type=PATH, help="Labelled rows that baselines learn from.  [default: the first adapter's own]"
)
@click.option(
    "--from-scored",
    type=PATH,
    help="Judge this output Parquet by id, without an engine; ADAPTER may be left out.",
)
@click.option("--id-column", default="id", show_default=True, help="Its column of ids.")
@click.option(
    "--cross-validate",
    metavar="K",
    type=click.IntRange(2),
    help="Judge each row by what learnt from the other K-1 folds.",
)
def evaluate(arguments: tuple[str, ...], json_path: Path | None, attack: bool, **options: Any) -> None:
    """Judge adapters on labelled requests, through the path that serves them.

    ADAPTER is a bundle directory, a digest, an alias, `base` for the base model without an adapter, or a
    baseline: `majority`, `keywords`, `tfidf`. With --cross-validate it is a baseline, or a recipe (.toml) to
    fit once a fold.
    """
    from rich.console import Console

    from batch.errors import InputError
    from train.evaluation.tables import show, write_json

    check_folder(json_path)
    scored = options["from_scored"]
    alone = scored is not None and Path(arguments[0]).is_file() and arguments[0].endswith(".jsonl")
    names = [] if alone else [name.strip() for name in arguments[0].split(",") if name.strip()]
    datasets = [Path(each) for each in (arguments if alone else arguments[1:])]
    if not datasets:
        raise InputError("no dataset to judge on; give labelled requests as JSONL after the adapters")
    if attack:
        return _attack(names, datasets, json_path, **options)
    results = _results(names, datasets, **options)
    show(results, Console(highlight=False))
    if json_path:
        write_json(results, json_path)


def _attack(
    names: list[str],
    datasets: list[Path],
    json_path: Path | None,
    contract: str | None,
    base_model: str | None,
    **options: Any,
) -> None:
    from rich.console import Console

    from batch.adapter.registry import Registry
    from batch.errors import InputError
    from train.evaluation.ask import candidate
    from train.evaluation.injection import attack, show_attacks

    if options["from_scored"] or options["cross_validate"] or not names:
        raise InputError("--attack asks adapters themselves; leave out --from-scored and --cross-validate")
    registry = Registry()
    attacks = attack([candidate(name, registry, contract, base_model) for name in names], datasets)
    show_attacks(attacks, Console(highlight=False))
    if json_path:
        write(json_path, {"interval": "95 % Wilson score", "attacks": [each.as_json() for each in attacks]})


def _results(
    names: list[str], datasets: list[Path], contract: str | None, from_scored: Path | None, id_column: str,
    cross_validate: int | None, **options: Any
) -> list[Any]:  # fmt: skip
    from batch.adapter.registry import Registry
    from train.evaluation.ask import judge

    if cross_validate:
        return _cross_validated(names, datasets, cross_validate, contract)
    registry, results = Registry(), []
    if from_scored:
        results = _from_scored(from_scored, datasets, registry, contract, id_column)
    if names:
        results += judge(names, datasets, registry, contract, **options)
    return results


def _from_scored(
    path: Path, datasets: list[Path], registry: Any, contract: str | None, id_column: str
) -> list[Any]:
    from train.dataset import load_rows
    from train.evaluation.from_scored import contract_of, judge_scored, read_scored

    table = read_scored(path, id_column)
    rules = contract_of(table, registry, contract)
    gold = {dataset: load_rows(dataset, rules, evaluation=True) for dataset in datasets}
    return [judge_scored(table, path, rows, rules, str(dataset), id_column) for dataset, rows in gold.items()]


def _cross_validated(names: list[str], datasets: list[Path], k: int, contract: str | None) -> list[Any]:
    from rich.console import Console

    from batch.contract.contract import Contract
    from batch.errors import InputError
    from train.config import Config
    from train.dataset import load_rows
    from train.evaluation.baselines import BASELINES
    from train.evaluation.cross_validation import cross_validate_baseline, cross_validate_recipe

    recipes = {name: Config.load(name) for name in names if name.endswith(".toml")}
    if strange := [name for name in names if name not in BASELINES and name not in recipes]:
        raise InputError(
            f"{strange[0]} has learnt already; cross-validate a recipe (.toml) or one of "
            f"{', '.join(BASELINES)}"
        )
    used = contract or next(
        (recipe.find(recipe.data.contract) for recipe in recipes.values()), "data/contract.toml"
    )
    rules, results = Contract.load(used), []
    for dataset in datasets:
        rows = load_rows(dataset, rules)
        for name in names:
            if name in recipes:
                results.append(
                    cross_validate_recipe(recipes[name], rows, k, str(dataset), Console(stderr=True))
                )
            else:
                results.append(cross_validate_baseline(name, rows, rules, k, str(dataset)))
    return results


@click.command()
@click.argument("adapters", metavar="ADAPTER[,ADAPTER...]")
@click.argument("dataset", type=PATH)
@click.option(
    "--train",
    type=PATH,
    help="The rows that it learnt from.  [default: where the bundle's manifest has them]",
)
@click.option("--json", "json_path", type=PATH, help="Write everything here.")
def diagnose(adapters: str, dataset: Path, train: Path | None, json_path: Path | None) -> None:
    """Say why ADAPTER is wrong where it is wrong on DATASET, and which examples its training rows lack.

    Groups its misses, finds words that go with labels in its training rows, and asks contrast probes, which
    the contract generates: how often does a label come without the words that its rule wants in the text?
    """
    from rich.console import Console

    from batch.adapter.registry import Registry
    from batch.errors import DatasetError
    from train.dataset import load_rows, split_path
    from train.diagnosis.loop import examine
    from train.diagnosis.tables import show_diagnoses
    from train.evaluation.ask import candidate

    check_folder(json_path)
    registry, console = Registry(), Console(highlight=False)
    subjects = [candidate(name.strip(), registry) for name in adapters.split(",") if name.strip()]
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
        write(json_path, [each.as_json() for each in diagnoses])


@click.command()
@click.argument("versions", metavar="NAME=CONFIG[,NAME=CONFIG...]")
@click.argument("datasets", metavar="DATASET...", nargs=-1, required=True, type=PATH)
@click.option("--json", "json_path", type=PATH, help="Write the evaluations, comparisons and diagnoses here.")
def loop(versions: str, datasets: tuple[Path, ...], json_path: Path | None) -> None:
    """Fit an adapter for each version of the data, and show side by side what the last one changed.

    The first DATASET is also diagnosed, with contrast probes. Exit 2 if the last version answers a label
    without the words that its rule wants, or lost what the first one had right. Each adapter gets its NAME as
    an alias.
    """
    from rich.console import Console

    from batch.adapter.registry import Registry
    from batch.errors import InputError
    from train.config import Config
    from train.dataset import load_rows
    from train.diagnosis.loop import examine, fit_versions, verdict
    from train.diagnosis.tables import show_diagnoses
    from train.evaluation.ask import candidate
    from train.evaluation.evaluate import comparisons
    from train.evaluation.tables import show_measures

    check_folder(json_path)
    pairs = [version.strip().partition("=") for version in versions.split(",")]
    if any(not config for _, _, config in pairs) or len({name for name, _, _ in pairs}) < 2:
        raise InputError(
            f"{versions!r} must be two versions at least, such as v1=train/mini.toml,v2=train/mini-v2.toml"
        )
    registry, console = Registry(), Console(highlight=False)
    recipes = {name: Config.load(config) for name, _, config in pairs}
    fit_versions(recipes, registry, Console(stderr=True))
    subjects = [candidate(name, registry) for name in recipes]
    trains = [
        load_rows(recipe.find(recipe.data.train), s.contract)
        for recipe, s in zip(recipes.values(), subjects, strict=True)
    ]
    evaluations, diagnoses = examine(subjects, datasets, trains)
    show_measures(evaluations, console)
    show_diagnoses(diagnoses, console)
    if json_path:
        groups: dict[str, list[Any]] = {
            "evaluations": evaluations,
            "comparisons": comparisons(evaluations),
            "diagnoses": diagnoses,
        }
        write(json_path, {name: [each.as_json() for each in group] for name, group in groups.items()})
    for line in verdict(evaluations, diagnoses):
        click.echo(line)


def check_folder(path: Path | None) -> None:
    from batch.errors import InputError

    if path and not path.absolute().parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} in; make it first")


def write(path: Path, content: Any) -> None:
    import json

    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
