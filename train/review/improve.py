"""The loop closed: reviewed rows join the training rows, never those that measure; a new adapter is fitted to
them.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.contract.json_text import json_line
from batch.errors import AdapterError, DatasetError
from batch.reporting.console import PlainConsole
from train.config import Config
from train.dataset import Row, load_rows
from train.doctor import sound
from train.evaluation.ask import judge
from train.evaluation.seen import indexed
from train.evaluation.tables import show_measures
from train.fit.calibrate import MIN_ROWS
from train.fit.inputs import Inputs, prepare
from train.fit.qlora import fit
from train.fit.runs import already_fitted
from train.likeness import signs
from train.release.gates import GateData, foreseen, gates
from train.release.promotions import history
from train.release.promotions import promote as move

HOW_CALIBRATED = (
    f"name {MIN_ROWS} labelled rows or more as [data] calibration in the recipe, with "
    "[calibration] target_error = {:g}"
)


@dataclasses.dataclass(frozen=True)
class Extended:
    """A recipe whose training rows include the reviewed ones, and what became of those."""

    config: Config
    added: int
    replaced: int  # training rows that gave way to reviewed ones
    measuring: int  # left out: nearly a row that measures
    known: int  # left out: nearly a training row with the same labels


def extend(
    config: Config, reviewed: Sequence[Path], folder: Path, measuring: Iterable[Path] = ()
) -> Extended:
    """Write the recipe's training rows and the reviewed ones, each once, to one file in `folder`.

    A reviewed row that is nearly a row of the recipe's other splits, or of `measuring`, is left out: what is
    trained on must not be what is measured. One that is nearly a training row replaces it where its labels
    differ, since the person has just decided. Of reviewed rows with one wording the last counts. Only texts
    are compared: an id that another text has is replaced by one of the row's own. Raises `DatasetError`,
    `ConfigError`.
    """
    contract = Contract.load(config.find(config.data.contract))
    train = load_rows(config.find(config.data.train), contract)
    splits = [config.data.validation, config.data.test, config.data.calibration]
    held = [row for name in splits if name for row in load_rows(config.find(name), contract, evaluation=True)]
    held += [row for path in measuring for row in load_rows(path, contract, evaluation=True)]
    decided = (row for path in reviewed for row in load_rows(path, contract, decisions=True))
    rows = {tuple(signs(row.request)): row for row in decided}  # of a wording, the later decision stands
    measured, trained = (indexed(each, config.data.likeness) for each in (held, train))
    kept: dict[str, Row] = {row.id: row for row in train}
    holding = {row.id for row in held}
    added = replaced = left = known = 0
    for row in rows.values():
        if any(measured.near(row.request)):
            left += 1
            continue
        near = (train[index] for index, _ in trained.near(row.request))
        twins = [twin for twin in near if kept.get(twin.id) is twin]
        if any(_alike(row, twin, contract) for twin in twins):
            known += 1
            continue
        for twin in twins:
            kept.pop(twin.id)
        replaced += len(twins)
        own = _own_id(row.id, kept, holding)
        kept[own] = dataclasses.replace(row, id=own)
        added += 1
    if not added:
        raise DatasetError(f"none of {len(rows)} reviewed rows is new to the training rows; review more")
    text = "".join(json_line(row.as_json()) for row in kept.values())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"train-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    path.write_text(text, encoding="utf-8")
    data = dataclasses.replace(config.data, train=str(path))
    return Extended(dataclasses.replace(config, data=data), added, replaced, left, known)


def fit_and_compare(config: Config, console: Console, against: Sequence[Path], promote: bool) -> None:
    """Fit, print it beside the champion on the recipe's test rows and `against`, promote it if it passes the
    gates. An adapter that was fitted from these very rows before is not fitted again.

    Raises what `prepare` and `fit` raise, and `AdapterError` at a gate that is not passed: before the fit,
    where that can be known.
    """
    registry = Registry()
    if promote:
        history(registry)  # one that is damaged stops the promotion: better now than after the fit
    champion = registry.aliases().get("champion")
    rows = config.find(config.data.train)
    inputs = prepare(config)
    named = [config.find(config.data.test)] if config.data.test else []
    datasets = [*named, *against]
    data = GateData(test=next(iter(datasets), None), others="as [data] test in the recipe")
    if bundle := already_fitted(registry, inputs):
        console.print(f"fitted already: {bundle.digest[:12]}")
    other = champion is not None and (bundle is None or bundle.digest != champion)
    refuse = promote and bundle is None
    why = _not_compared(inputs, datasets, registry, data, refuse) if other else None
    if why:
        console.print(f"no comparison with the champion: {why}", highlight=False, soft_wrap=True)
    if bundle is None:
        bundle = fit(inputs, registry, PlainConsole(stderr=True), functools.partial(sound, rows, console))
    if other and datasets and not why:
        show_measures(judge(["champion", bundle.digest[:12]], datasets, registry), console)
    if promote:
        beaten = registry.aliases().get("champion")
        passed = gates(bundle.digest, registry, data)
        for gate in passed:
            console.print(str(gate))
        move(bundle, registry, passed, beaten)
        console.print(f"champion is {bundle.digest[:12]}")


def _not_compared(
    inputs: Inputs, datasets: Sequence[Path], registry: Registry, data: GateData, refuse: bool
) -> str | None:
    """Why an adapter of these inputs cannot be judged beside the champion, if so, before it is fitted. With
    `refuse` a gate that it will not pass raises `AdapterError`.
    """
    measuring = load_rows(data.test, inputs.contract, evaluation=True) if data.test and refuse else []
    rows = inputs.splits.get("calibration") or inputs.splits["validation"]
    target = inputs.config.calibration.target_error if len(rows) >= MIN_ROWS else None
    failing = foreseen(inputs.contract, registry, data, measuring, target, HOW_CALIBRATED)
    if failing and refuse:
        told = "; ".join(f"{gate.name}: {gate.why}" for gate in failing)
        raise AdapterError(
            f"the new adapter will not pass a gate: {told}; --no-promote only fits it, to calibrate and "
            "promote it afterwards"
        )
    if why := next((gate.why for gate in failing if gate.name == "champion"), None):
        return why
    try:
        for path in datasets:
            load_rows(path, Bundle.open(registry.resolve("champion")).contract, evaluation=True)
    except DatasetError as error:  # its policy table may decide otherwise
        return str(error)
    return None


def _own_id(name: str, *taken: Container[str]) -> str:
    """`name`, or where that is taken a name of like kind that is not."""
    more = (f"{name}-reviewed-{number}" for number in itertools.count(2))
    names = itertools.chain([name, f"{name}-reviewed"], more)
    return next(each for each in names if not any(each in ids for ids in taken))


def _alike(row: Row, other: Row, contract: Contract) -> bool:
    return all(row.answer[field.name] == other.answer[field.name] for field in contract.scored_fields)
