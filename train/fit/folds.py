"""Cross-validation of a recipe: its adapter is fitted once a fold, and judged on the rows it did not see.

The folds' adapters lie beside the registry, where they find the same `bases/`, until all recipes are judged:
a cross-validation that was cut off is resumed.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from batch.adapter.registry import Registry
from batch.engine import DEFAULT_ENGINE
from batch.storage.places import check_folder
from train.config import Config
from train.evaluation.ask import candidate, route
from train.evaluation.cross_validation import Fold
from train.evaluation.evaluate import Evaluation, evaluate
from train.fit.inputs import Inputs, prepare
from train.fit.qlora import fit
from train.fit.runs import already_fitted, held


def prepare_folds(recipe: Config, dataset: Path) -> Inputs:
    """The inputs of a fit on all rows of `dataset`: each is in some fold's, so what is refused of any fold is
    refused of these. Raises what `prepare` does.
    """
    home = _home()
    what = f"the folds' adapters beside the registry, into {home.parent}/"
    check_folder(home.parent, what, "set BATCH_ROUTE_ADAPTERS to a folder in a writable one")
    data = dataclasses.replace(recipe.data, train=str(dataset), test=None)
    return prepare(dataclasses.replace(recipe, data=data), Registry(home))


def cross_validate_recipes(
    prepared: Sequence[tuple[Inputs, Sequence[Fold]]], console: Console, engine: str = DEFAULT_ENGINE
) -> list[Evaluation]:
    """Of each recipe's inputs fit an adapter once a fold, on the other folds."""
    with contextlib.ExitStack() as stack:
        names = dict.fromkeys(whole.fingerprint for whole, _ in prepared)
        registries = {name: Registry(stack.enter_context(held(_home(name)))) for name in names}
        return [
            _cross_validated(whole, parts, registries[whole.fingerprint], console, engine)
            for whole, parts in prepared
        ]


def _cross_validated(
    whole: Inputs, parts: Sequence[Fold], registry: Registry, console: Console, engine: str
) -> Evaluation:
    rows, config, subjects = whole.splits["train"], whole.config, []
    for number, fold in enumerate(parts, start=1):
        inputs = _without(whole, fold)
        bundle = already_fitted(registry, inputs)
        told = "fitted already" if bundle else f"{len(fold[0])} rows"
        console.print(f"{config.path.name}, fold {number} of {len(parts)}: {told}")
        bundle = bundle or fit(inputs, registry, console)
        subjects.append(candidate(bundle.digest, registry))
    texts = [[[rows[i].request for i in judged]] for _, judged in parts]
    answers: dict[int, Any] = {}
    for (_, judged), (scored,) in zip(parts, route(subjects, texts, engine), strict=True):
        answers.update(zip(judged, scored, strict=True))
    ordered = [answers[i] for i in range(len(rows))]
    return evaluate(rows, ordered, whole.contract, config.path.name, config.data.train)


def _home(fingerprint: str = "") -> Path:
    """Not inside the registry: `bases/` lies beside the folder of a bundle's folder."""
    return Registry().root.absolute().parent / f".folds-{fingerprint[:16]}"


def _without(whole: Inputs, fold: Fold) -> Inputs:
    """The inputs of one fold; their facts, by which an interrupted fit is found, name the rows left out."""
    learn, judged = fold
    data = whole.facts["data"]
    train = {**data["train"], "rows": len(learn), "without": judged}
    return dataclasses.replace(
        whole,
        splits={**whole.splits, "train": [whole.splits["train"][i] for i in learn]},
        facts={**whole.facts, "data": {**data, "train": train}},
    )
