"""The shape of a base model: built on torch's meta device, in no time and memory, to count and to compare."""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

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
