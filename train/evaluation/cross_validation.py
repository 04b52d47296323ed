"""Cross-validation: every row of a small dataset is judged once, by what learnt from the other rows.

A baseline learns again for each fold in no time; an adapter is fitted again from its recipe, minutes a fold.
"""

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from sklearn.model_selection import StratifiedKFold

from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.engine import DEFAULT_ENGINE
from batch.errors import DatasetError
from train.config import Config
from train.dataset import Row
from train.evaluation.ask import candidate, route
from train.evaluation.baselines import Baseline
from train.evaluation.evaluate import Evaluation, evaluate

Fold = tuple[list[int], list[int]]  # numbers of the rows that are learnt from, and of those that are judged


def folds(rows: Sequence[Row], contract: Contract, k: int, seed: int = 0) -> list[Fold]:
    """`k` folds that are alike in the combinations of values they hold, as far as these are there often
    enough.
    """
    if not 2 <= k <= len(rows):
        raise DatasetError(f"cannot split {len(rows)} rows into {k} folds; choose from 2 to {len(rows)}")
    kinds = [repr([row.answer[field.name] for field in contract.scored_fields]) for row in rows]
    counts = Counter(kinds)
    commonest = counts.most_common(1)[0][0]
    # too rare to be in every fold: spread evenly
    kinds = [kind if counts[kind] >= k else commonest for kind in kinds]
    splitter = StratifiedKFold(k, shuffle=True, random_state=seed)
    return [(learn.tolist(), judge.tolist()) for learn, judge in splitter.split(kinds, kinds)]


def cross_validate_baseline(
    name: str, rows: Sequence[Row], contract: Contract, k: int, dataset: str
) -> Evaluation:
    answers: dict[int, Any] = {}
    for learn, judged in folds(rows, contract, k):
        baseline = Baseline.learn(name, [rows[i] for i in learn], contract)
        answers.update(zip(judged, baseline.answer([rows[i].request for i in judged]), strict=True))
    return evaluate(rows, [answers[i] for i in range(len(rows))], contract, name, dataset)


def cross_validate_recipe(
    recipe: Config, rows: Sequence[Row], k: int, dataset: str, console: Console, engine: str = DEFAULT_ENGINE
) -> Evaluation:
    """Fit the recipe's adapter once a fold, on the other folds, in a registry that is thrown away
    afterwards.
    """
    from train.fit.qlora import fit

    contract = Contract.load(recipe.find(recipe.data.contract))
    answers: dict[int, Any] = {}
    with tempfile.TemporaryDirectory(prefix="folds-") as folder:
        registry, subjects, parts = Registry(Path(folder) / "adapters"), [], folds(rows, contract, k)
        for number, (learn, _) in enumerate(parts, start=1):
            part = Path(folder) / f"fold-{number}.jsonl"
            part.write_text("".join(_line(rows[i]) for i in learn), encoding="utf-8")
            console.print(f"fold {number} of {k}: {len(learn)} rows")
            data = dataclasses.replace(recipe.data, train=str(part), test=None)
            bundle = fit(dataclasses.replace(recipe, data=data), registry, console)
            subjects.append(candidate(bundle.digest, registry))
        texts = [[[rows[i].request for i in judged]] for _, judged in parts]
        for (_, judged), (scored,) in zip(parts, route(subjects, texts, engine), strict=True):
            answers.update(zip(judged, scored, strict=True))
    return evaluate(rows, [answers[i] for i in range(len(rows))], contract, recipe.path.name, dataset)


def _line(row: Row) -> str:
    content = {
        "id": row.id,
        "request": row.request,
        **row.answer,
        **({"facts": row.facts} if row.facts else {}),
    }
    return json.dumps(content, ensure_ascii=False) + "\n"
