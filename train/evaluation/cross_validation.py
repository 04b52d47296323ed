"""Cross-validation: every row of a small dataset is judged once, by what learnt from the other rows.

A baseline learns again for each fold in no time; `train/fit/folds.py` fits an adapter again, minutes a fold.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sklearn.model_selection import StratifiedKFold

from batch.contract.contract import Contract
from batch.errors import DatasetError
from train.dataset import Row
from train.evaluation.baselines import Baseline
from train.evaluation.evaluate import Evaluation, evaluate
from train.likeness import alike

Fold = tuple[list[int], list[int]]  # numbers of the rows that are learnt from, and of those that are judged


def folds(rows: Sequence[Row], contract: Contract, k: int, seed: int = 0) -> list[Fold]:
    """`k` folds that are alike in the combinations of values they hold, as far as these are there often
    enough. Rows that are nearly alike share a fold: none is judged by what learnt its copy. Raises
    `DatasetError` where that leaves too few folds.
    """
    groups = alike([row.request for row in rows])
    if not 2 <= k <= len(groups):
        few = f": nearly equal requests share a fold, which leaves {len(groups)}"
        why = few if len(groups) < len(rows) else ""
        remedy = f"choose from 2 to {len(groups)}" if len(groups) > 1 else "add other requests"
        raise DatasetError(f"{rows[0].path}: cannot split {len(rows)} rows into {k} folds{why}; {remedy}")
    firsts = [rows[group[0]] for group in groups]
    kinds = [repr([row.answer[field.name] for field in contract.scored_fields]) for row in firsts]
    counts = Counter(kinds)
    commonest = counts.most_common(1)[0][0]
    # too rare to be in every fold: spread evenly
    kinds = [kind if counts[kind] >= k else commonest for kind in kinds]
    splitter = StratifiedKFold(k, shuffle=True, random_state=seed)

    def members(numbers: Iterable[int]) -> list[int]:
        return sorted(i for number in numbers for i in groups[number])

    return [(members(learn), members(judged)) for learn, judged in splitter.split(kinds, kinds)]


def cross_validate_baseline(
    name: str, rows: Sequence[Row], contract: Contract, parts: Sequence[Fold], dataset: str
) -> Evaluation:
    answers: dict[int, Any] = {}
    for learn, judged in parts:
        baseline = Baseline.learn(name, [rows[i] for i in learn], contract)
        answers.update(zip(judged, baseline.answer([rows[i].request for i in judged]), strict=True))
    return evaluate(rows, [answers[i] for i in range(len(rows))], contract, name, dataset)
