"""What a fit is made of: a recipe's inputs, loaded and checked before any model is."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch.adapter.base_model import base_digest, resolve_base
from batch.adapter.registry import Registry
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.imports import uncollected
from train.config import Config
from train.dataset import Row, check_splits, file_facts, load_rows
from train.examples import check_lengths
from train.fit.base_checks import check_finite, checked_renderer
from train.fit.card import license_of
from train.fit.places import check_bases, check_registry

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
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def load_splits(config: Config, contract: Contract, renderer: Renderer | None) -> dict[str, list[Row]]:
    """The rows of every split, checked one by one and against each other. Raises `DatasetError`."""
    splits = {
        split: load_rows(config.find(reference), contract, evaluation=split == "calibration")
        for split, reference in config.data.splits().items()
    }
    check_splits(splits, config.data.likeness)
    if renderer:
        for rows in splits.values():
            check_lengths(rows, renderer)
    return splits


def prepare(config: Config, registry: Registry | None = None) -> Inputs:
    """Load and check all inputs, and that the adapter can be written, before any model is loaded."""
    registry = registry or Registry()
    check_registry(registry)
    contract = Contract.load(config.find(config.data.contract))
    base = resolve_base(config.base.model, config.base.revision, near=config.path)
    renderer = checked_renderer(base, contract)
    splits = load_splits(config, contract, renderer)
    with uncollected():
        from train.fit.shape import check_weights  # torch, after all that can be refused without it

    check_weights(base)
    check_finite(base)  # last: it reads all weights
    digest = base_digest(base)
    check_bases(registry, digest, config.quantisation)
    references = config.data.splits()
    facts = {
        "base": {"ref": config.base.model, "revision": config.base.revision, "sha256": digest},
        "renderer_fingerprint": renderer.fingerprint,
        "contract_fingerprint": contract.fingerprint,
        "rank": config.lora.r,
        "recipe": config.recipe(),
        "data": {
            split: file_facts(config.find(references[split]), references[split], rows)
            for split, rows in splits.items()
        },
        "seed": config.training.seed,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        **({"base_license": licence} if (licence := license_of(base)) else {}),
    }
    return Inputs(config, contract, base, renderer, splits, facts)
