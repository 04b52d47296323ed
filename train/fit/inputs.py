"""What a fit is made of: a recipe's inputs, loaded and checked before any model is."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch.adapter.base_model import base_digest, resolve_base
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from train.config import Config
from train.dataset import Row, check_splits, file_facts, load_rows
from train.fit.base_checks import check_base

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that decides the result of a run, checked."""

    config: Config
    contract: Contract
    base: Path
    renderer: Renderer
    splits: Mapping[str, list[Row]]
    facts: Mapping[str, Any]  # the manifest's, without what is known only afterwards

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def prepare(config: Config) -> Inputs:
    """Load and check all inputs, before any model is loaded."""
    contract = Contract.load(config.find(config.data.contract))
    base = resolve_base(config.base.model, config.base.revision, near=config.path)
    renderer = Renderer.load(base, contract)
    check_base(base, renderer)
    references = {
        "train": config.data.train,
        "validation": config.data.validation,
        "test": config.data.test,
        "calibration": config.data.calibration,
    }
    paths = {split: config.find(reference) for split, reference in references.items() if reference}
    splits = {
        split: load_rows(path, contract, evaluation=split == "calibration") for split, path in paths.items()
    }
    check_splits(splits, config.data.likeness)
    facts = {
        "base": {"ref": config.base.model, "revision": config.base.revision, "sha256": base_digest(base)},
        "renderer_fingerprint": renderer.fingerprint,
        "contract_fingerprint": contract.fingerprint,
        "rank": config.lora.r,
        "recipe": config.recipe(),
        "data": {
            split: file_facts(paths[split], references[split] or "", rows) for split, rows in splits.items()
        },
        "seed": config.training.seed,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
    return Inputs(config, contract, base, renderer, splits, facts)
