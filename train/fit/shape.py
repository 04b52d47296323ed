"""The shape of a base model: built on torch's meta device, in no time and memory, to count and to compare."""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from batch.adapter.fits import canonical, linear_shapes
from batch.adapter.peft_checks import TOWERS
from batch.errors import AdapterError, ConfigError
from train.config import Shape


def base_on_meta(shape: Shape | Path) -> PreTrainedModel:
    """The model that a folder's `config.json` or a recipe's shape says, without weights. Raises
    `AdapterError`, `ConfigError`.
    """
    try:
        if isinstance(shape, Path):
            config = AutoConfig.from_pretrained(shape, trust_remote_code=False, local_files_only=True)
        else:
            values: dict[str, Any] = vars(shape).copy()
            config = AutoConfig.for_model(values.pop("model_type"), **values)
        with torch.device("meta"), warnings.catch_warnings():
            # initialising a tensor without storage does nothing, and torch says so
            warnings.simplefilter("ignore")
            base: PreTrainedModel = AutoModelForCausalLM.from_config(config)
            return base
    except Exception as error:  # each class of model has its own
        why = " ".join(str(error).split())[:300]
        said = f"is of no model that answers in text: {why}; use a standard architecture"
        if isinstance(shape, Path):
            raise AdapterError(f"{shape}: config.json {said}") from error
        raise ConfigError(f"[base] shape {said}") from error


def check_weights(folder: Path) -> None:
    """The weights must be those of the model in `config.json`: transformers makes up what is missing.

    Raises `AdapterError`, also for a `config.json` of no model that transformers has.
    """
    stored = linear_shapes(folder)
    model = base_on_meta(folder)
    wanted = {
        canonical(name.removesuffix(".weight")): tuple(weight.shape)
        for name, weight in model.named_parameters()
        if name.endswith(".weight") and weight.dim() == 2 and TOWERS.isdisjoint(name.split("."))
    }
    if wanted.keys().isdisjoint(stored):  # written under other names, which transformers translates
        return
    for name, shape in wanted.items():
        if name not in stored:
            raise AdapterError(
                f"{folder}: has no weights of {name}, which the model of its config.json has; "
                "copy the folder again"
            )
        if stored[name] != shape:
            raise AdapterError(
                f"{folder}: {name} is of shape {list(stored[name])}, in the model of its config.json it is "
                f"{list(shape)}; copy the folder again"
            )
