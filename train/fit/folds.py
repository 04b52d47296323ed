"""Cross-validation of a recipe: its adapter is fitted once a fold, and judged on the rows it did not see.

The folds' adapters lie beside the registry, where they find the same `bases/`, until all recipes are judged:
a cross-validation that was cut off is resumed.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from batch.adapter.registry import Registry
from batch.engine import DEFAULT_ENGINE
from batch.storage.lock import Lock
from train.config import Config
from train.evaluation.ask import candidate, route
from train.evaluation.cross_validation import Fold
from train.evaluation.evaluate import Evaluation, evaluate
from train.fit.inputs import Inputs, prepare
from train.fit.qlora import fit
from train.fit.runs import already_fitted


def prepare_folds(recipe: Config, dataset: Path) -> Inputs:
    """The inputs of a fit on all rows of `dataset`: each is in some fold's, so what is refused of any fold is
    refused of these.
    """
    data = dataclasses.replace(recipe.data, train=str(dataset), test=None)
    return prepare(dataclasses.replace(recipe, data=data), _registry(""))


def cross_validate_recipes(
    prepared: Sequence[tuple[Inputs, Sequence[Fold]]], console: Console, engine: str = DEFAULT_ENGINE
) -> list[Evaluation]:
    """Of each recipe's inputs fit an adapter once a fold, on the other folds."""
    with contextlib.ExitStack() as stack:
        names = dict.fromkeys(whole.fingerprint for whole, _ in prepared)
        registries = {name: stack.enter_context(_kept(name)) for name in names}
        return [
            _cross_validated(whole, parts, registries[whole.fingerprint], console, engine)
            for whole, parts in prepared
        ]


@contextlib.contextmanager
def _kept(fingerprint: str) -> Iterator[Registry]:
    """The registry of a recipe's folds, held by this process, and removed once all recipes are judged."""
    registry = _registry(f"-{fingerprint[:16]}")
    registry.root.mkdir(parents=True, exist_ok=True)
    with Lock.take(registry.root / "lock", str(registry.root)):
        yield registry
        shutil.rmtree(registry.root)


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


def _registry(suffix: str) -> Registry:
    return Registry(Registry().root.absolute().parent / f".folds{suffix}")


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
