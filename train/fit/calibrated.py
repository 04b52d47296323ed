"""Calibrate a bundle: ask the engine for the answers to labelled rows, fit, and seal the bundle again."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from batch.adapter.bundle import Bundle, seal_bundle
from batch.adapter.registry import Registry
from batch.engine import DEFAULT_ENGINE
from batch.engine.supervisor import Supervisor
from batch.errors import DatasetError
from batch.scoring.adapters import engine_spec, lane_of, spec_of
from batch.scoring.lane import ScoredRow
from batch.scoring.router import Requests, Router
from train.dataset import Row, file_facts, load_rows
from train.evaluation.seen import seen_by
from train.files import write_json
from train.fit.calibrate import MIN_ROWS, calibrate, raw, too_few
from train.fit.card import model_card
from train.fit.places import check_registry


def calibrate_folder(
    folder: Path, rows: Sequence[Row], data: dict[str, Any], target_error: float
) -> dict[str, Any]:
    """Fit the sealed bundle in `folder` on `rows` and seal it again, under its new digest. Returns
    `calibration.json`.

    `data` says where the rows are from (:func:`train.dataset.file_facts`). Too few rows cost no engine:
    scores stay raw.
    """
    bundle = Bundle.open(folder)
    content = fitted(bundle, rows, data, target_error)
    _seal(bundle, folder, content)
    return content


def calibrate_bundle(
    bundle: Bundle, dataset: Path, target_error: float, registry: Registry, warn: Callable[[str], object]
) -> tuple[Bundle, dict[str, Any]]:
    """A calibrated copy of the bundle in the registry, with the alias `latest`. Raises `EngineError`, and
    `DatasetError` for rows that are too few or were trained on, `InputError` for a registry that cannot be
    written; nothing is written then.
    """
    rows = load_rows(dataset, bundle.contract, evaluation=True)
    if len(rows) < MIN_ROWS:
        raise DatasetError(f"{dataset}: {too_few(len(rows), 0)}; label more")
    data = file_facts(dataset, str(dataset), rows)
    check_unseen(bundle, rows, data, warn)
    check_registry(registry)
    content = fitted(bundle, rows, data, target_error)
    if not content["calibrated"]:
        raise DatasetError(f"{dataset}: {content['why']}; batch-train doctor looks for the cause")
    staging = registry.staging()
    try:
        shutil.copytree(bundle.path, staging, dirs_exist_ok=True)
        _seal(bundle, staging, content)
        made = registry.add(staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    registry.set_alias("latest", made.digest)
    return made, content


def check_unseen(
    bundle: Bundle, rows: Sequence[Row], data: Mapping[str, Any], warn: Callable[[str], object]
) -> None:
    """Refuse rows that the bundle was trained on, or nearly, as `fit` does: a model is surer of those than of
    others, and so would its scores be. Raises `DatasetError`; without the training rows it warns.
    """
    seen = seen_by(bundle, rows)
    if seen:
        raise DatasetError(
            f"{len(seen)} of {len(rows)} requests are those that adapter {bundle.digest[:12]} was trained "
            f"on, or nearly, the first at {seen[0].where}; calibrate on others"
        )
    if seen is None:
        warn(
            f"Warning: the training rows of adapter {bundle.digest[:12]} are not here, so {data['path']} is "
            "not compared with them"
        )


def fitted(
    bundle: Bundle, rows: Sequence[Row], data: Mapping[str, Any], target_error: float
) -> dict[str, Any]:
    """The content of `calibration.json`. Too few rows cost no engine."""
    if len(rows) < MIN_ROWS:
        return raw(too_few(len(rows), 0))
    return {**calibrate(rows, answers(bundle, rows), bundle.contract, target_error), "data": data}


def _seal(bundle: Bundle, folder: Path, content: Mapping[str, Any]) -> None:
    """Write `content`, and the card with it, into the bundle's files in `folder`."""
    write_json(folder / "calibration.json", content)
    facts = {key: value for key, value in bundle.manifest.items() if key != "files"}
    if (folder / "card.md").exists():
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        (folder / "card.md").write_text(
            model_card(bundle.contract, facts, metrics, content), encoding="utf-8"
        )
    seal_bundle(folder, facts)


def answers(bundle: Bundle, rows: Sequence[Row], kind: str = DEFAULT_ENGINE) -> list[ScoredRow]:
    """The bundle's own answers, with raw scores, on the path that serves."""
    requests = Requests.to(lane_of(bundle), [row.request for row in rows])
    with Supervisor(engine_spec(bundle.resolve_base(), [bundle], kind=kind)) as engine:
        engine.load(spec_of(bundle))
        return [row for batch in Router(engine).route([requests]) for row in batch]


def summary(content: dict[str, Any]) -> list[str]:
    """What was found, a line each."""
    if not content["calibrated"]:
        return [f"scores stay raw: {content['why']}"]
    lines = [
        f"{name}: adaptive ECE {found['raw']['ece']:.3f} → {found['calibrated']['ece']:.3f}, "
        f"Brier {found['raw']['brier']:.3f} → {found['calibrated']['brier']:.3f}"
        for name, found in content["evidence"]["fields"].items()
    ]
    return [*lines, content["why"]]
