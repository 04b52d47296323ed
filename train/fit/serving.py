"""Which weights of the base an adapter is served on: those it was fitted to, unless others are as good.

It was fitted to 4-bit weights, which vLLM does not load. By default they are served expanded; a recipe may
want the original base (`serve = "original"`), or only if that is measured no worse (`"measured"`).
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from batch.adapter.bundle import Bundle, seal_bundle
from batch.adapter.expanded import Expansion
from batch.engine.expand import expand
from train.config import Quantisation
from train.dataset import Row
from train.evaluation.evaluate import ALL, Evaluation, compare, evaluate
from train.fit.calibrate import MIN_ROWS
from train.fit.calibrated import answers
from train.fit.model import compute_dtype


def expansion_of(original: str, quantisation: Quantisation) -> Expansion:
    """What a recipe makes of the base with the sha256 `original`, before it is made."""
    dtype = str(compute_dtype(quantisation)).removeprefix("torch.")
    return Expansion(original, quantisation.type, quantisation.double, dtype)


def choose_served_base(
    folder: Path, original: Path, quantisation: Quantisation, rows: Sequence[Row], console: Console
) -> None:
    """Make what the recipe wants served, and seal the bundle in `folder` again with `served_base`.

    `rows` are the calibration rows, which `serve = "measured"` asks twice. Raises `AdapterError`,
    `EngineError`.
    """
    if quantisation.type == "none" or quantisation.serve == "original":
        return
    before = Bundle.open(folder)
    expansion = expansion_of(str(before.base["sha256"]), quantisation).made(folder, original, expand)
    facts = {key: value for key, value in before.manifest.items() if key != "files"}
    seal_bundle(folder, {**facts, "served_base": vars(expansion)})
    if quantisation.serve == "measured" and _original_is_no_worse(before, Bundle.open(folder), rows, console):
        seal_bundle(folder, facts)


def _original_is_no_worse(original: Bundle, expanded: Bundle, rows: Sequence[Row], console: Console) -> bool:
    """Measured on the path that serves; what is decided is said."""
    if len(rows) < MIN_ROWS:
        console.print(
            f"served on the expanded base: {len(rows)} calibration rows are too few to measure the original, "
            f"{MIN_ROWS} are needed",
            highlight=False,
        )
        return False
    judged = [
        evaluate(rows, answers(bundle, rows), bundle.contract, name, "")
        for name, bundle in (("expanded", expanded), ("original", original))
    ]
    counts = [f"{each.adapter} {each.measures[ALL].count}" for each in judged]
    worse = worse_at(*judged)
    told = f"worse at {', '.join(worse)}" if worse else "no worse at any field"
    console.print(
        f"served on the {'expanded' if worse else 'original'} base: of {len(rows)} rows all right, "
        f"{', '.join(counts)} (by exact McNemar the original is {told})",
        highlight=False,
    )
    return not worse


def worse_at(expanded: Evaluation, original: Evaluation) -> list[str]:
    """What the original has right less often beyond chance: fields, or all of them. Fields can cancel out."""
    return [name for name, test in compare(expanded, original).tests.items() if test.better == 1]
