"""Calibrate a bundle: ask the engine for the answers to labelled rows, fit, and seal the bundle again."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch.adapter.bundle import Bundle, seal_bundle
from batch.adapter.registry import Registry
from batch.engine import DEFAULT_ENGINE
from batch.engine.supervisor import Supervisor
from batch.scoring.adapters import engine_spec, lane_of, spec_of
from batch.scoring.lane import ScoredRow
from batch.scoring.router import Requests, Router
from train.dataset import Row, file_facts, load_rows
from train.files import write_json
from train.fit.calibrate import MIN_ROWS, calibrate, raw
from train.fit.card import model_card


def calibrate_folder(
    folder: Path, rows: Sequence[Row], data: dict[str, Any], target_error: float
) -> dict[str, Any]:
    """Fit the sealed bundle in `folder` on `rows` and seal it again, under its new digest. Returns
    `calibration.json`.

    `data` says where the rows are from (:func:`train.dataset.file_facts`). Too few rows cost no engine:
    scores stay raw.
    """
    bundle = Bundle.open(folder)
    if len(rows) < MIN_ROWS:
        content = raw(
            f"{len(rows)} labelled rows are too few to calibrate on, {MIN_ROWS} are needed; scores "
            "are the model's own"
        )
    else:
        content = {**calibrate(rows, answers(bundle, rows), bundle.contract, target_error), "data": data}
    write_json(folder / "calibration.json", content)
    facts = {key: value for key, value in bundle.manifest.items() if key != "files"}
    if (folder / "card.md").exists():
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        (folder / "card.md").write_text(
            model_card(bundle.contract, facts, metrics, content), encoding="utf-8"
        )
    seal_bundle(folder, facts)
    return content


def calibrate_bundle(
    bundle: Bundle, dataset: Path, target_error: float, registry: Registry
) -> tuple[Bundle, dict[str, Any]]:
    """A calibrated copy of the bundle in the registry, with the alias `latest`. Raises `DatasetError`,
    `EngineError`.
    """
    rows = load_rows(dataset, bundle.contract, evaluation=True)
    staging = registry.staging()
    try:
        shutil.copytree(bundle.path, staging, dirs_exist_ok=True)
        content = calibrate_folder(staging, rows, file_facts(dataset, str(dataset), rows), target_error)
        made = registry.add(staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    registry.set_alias("latest", made.digest)
    return made, content


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
