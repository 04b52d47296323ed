"""The loop in one go: fit an adapter for each version of the data, judge all on the same rows, say what
changed.

The last version has to be what it claims: no label without its words, nothing that was right before lost.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.errors import AdapterError
from train.config import Config
from train.diagnosis.diagnose import BOUND, Bias, Diagnosis
from train.doctor import sound
from train.evaluation.evaluate import Evaluation, compare
from train.fit import qlora
from train.fit.inputs import prepare
from train.fit.runs import already_fitted

ENOUGH = 20  # rows without a mention, for a condition to be judged by itself


def fit_versions(
    recipes: Mapping[str, Config], registry: Registry, console: Console, doctor: bool = True
) -> list[Bundle]:
    """An adapter for each recipe, under its name as an alias; one that was fitted already is not fitted
    again.

    Each ends with the `doctor`'s checks, as any fit does: `AdapterError` where they fail.
    """
    bundles = []
    for name, recipe in recipes.items():
        inputs = prepare(recipe)
        bundle = already_fitted(registry, inputs)
        console.print(f"{name}: {'fitted already' if bundle else f'fitting {recipe.path}'}")
        checks = functools.partial(sound, recipe.find(recipe.data.train), console) if doctor else None
        bundle = bundle or qlora.fit(inputs, registry, console, checks)
        registry.set_alias(name, bundle.digest)
        bundles.append(bundle)
    return bundles


def verdict(evaluations: Sequence[Evaluation], diagnoses: Sequence[Diagnosis]) -> list[str]:
    """What the last adapter does better or worse than the first, a line each. Raises `AdapterError` where it
    fails.
    """
    first, last = diagnoses[0], diagnoses[-1]
    source, lines, failures = Path(last.dataset).name, [], []
    for after in last.biases:
        before = first.bias(after.rule)
        if before is None:  # the first version's contract had no such rule
            continue
        for condition in dict.fromkeys(("any", _worst(before, source))):
            was, now = before.rate(source, condition), after.rate(source, condition)
            where = "not mentioned" if condition == "any" else f"{condition}, not mentioned"
            lines.append(f"P({after.label} | {where}): {first.adapter} {was}, {last.adapter} {now}")
            if (now.share or 0.0) > BOUND:
                failures.append(f"{last.adapter} answers {after.label!r} in {now} rows ({where})")
        lines.append(
            f"named, and right: {first.adapter} {before.named[source]}, {last.adapter} {after.named[source]}"
        )
        if after.named[source].count < before.named[source].count:
            failures.append(
                f"{last.adapter} finds {after.label!r} where it is named in fewer rows than {first.adapter}"
            )
    for dataset in dict.fromkeys(each.dataset for each in evaluations):
        pair = [
            next(e for e in evaluations if (e.adapter, e.dataset) == (d.adapter, dataset))
            for d in (first, last)
        ]
        for name, test in compare(*pair).tests.items():
            if test.better == 1:
                failures.append(
                    f"{last.adapter} is worse than {first.adapter} at {name} on {dataset}: "
                    f"{test.first} rows lost, {test.second} won"
                )
    if failures:
        remedy = f"add the examples that batch-train diagnose {last.adapter} {last.dataset} finds missing"
        raise AdapterError(f"{'; '.join(failures)}; {remedy}")
    lines.append(
        f"nothing lost: on no dataset and in no field is {last.adapter} worse than {first.adapter} "
        "beyond chance (exact McNemar)"
    )
    return lines


def _worst(bias: Bias, source: str) -> str:
    """The condition under which the label comes most often without its words, among those with rows enough to
    say so.
    """
    enough = [rate for rate in bias.rates if rate.source == source and rate.unmentioned.of >= ENOUGH]
    return (
        max(enough, key=lambda rate: (rate.unmentioned.share or 0.0, rate.unmentioned.of)).condition
        if enough
        else "any"
    )
