"""Cross-validation of a recipe: its adapter is fitted once a fold, and judged on the rows it did not see."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.contract.json_text import json_line
from batch.engine import DEFAULT_ENGINE
from train.config import Config
from train.dataset import Row
from train.evaluation.ask import candidate, route
from train.evaluation.cross_validation import folds
from train.evaluation.evaluate import Evaluation, evaluate
from train.fit.inputs import prepare
from train.fit.qlora import fit


def cross_validate_recipe(
    recipe: Config, rows: Sequence[Row], k: int, dataset: str, console: Console, engine: str = DEFAULT_ENGINE
) -> Evaluation:
    """Fit the recipe's adapter once a fold, on the other folds, in a registry that is thrown away
    afterwards.
    """
    contract = Contract.load(recipe.find(recipe.data.contract))
    answers: dict[int, Any] = {}
    with tempfile.TemporaryDirectory(prefix="folds-") as folder:
        registry, subjects, parts = Registry(Path(folder) / "adapters"), [], folds(rows, contract, k)
        for number, (learn, _) in enumerate(parts, start=1):
            part = Path(folder) / f"fold-{number}.jsonl"
            part.write_text("".join(json_line(rows[i].as_json()) for i in learn), encoding="utf-8")
            console.print(f"fold {number} of {k}: {len(learn)} rows")
            data = dataclasses.replace(recipe.data, train=str(part), test=None)
            bundle = fit(prepare(dataclasses.replace(recipe, data=data), registry), registry, console)
            subjects.append(candidate(bundle.digest, registry))
        texts = [[[rows[i].request for i in judged]] for _, judged in parts]
        for (_, judged), (scored,) in zip(parts, route(subjects, texts, engine), strict=True):
            answers.update(zip(judged, scored, strict=True))
    return evaluate(rows, [answers[i] for i in range(len(rows))], contract, recipe.path.name, dataset)
