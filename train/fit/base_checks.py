"""What can be told of a base model before it is loaded: whether `fit` can train on it, and vLLM serve the
result.
"""

import importlib.util
from pathlib import Path
from typing import Any

from batch.adapter.base_model import check_holds
from batch.adapter.files import read_json
from batch.adapter.renderer import Renderer
from batch.engine.architectures import takes_adapters
from batch.errors import AdapterError


def check_base(folder: Path, renderer: Renderer) -> None:
    """Refuse a base that would fail after the training, or not at all and be wrong. Raises `AdapterError`."""
    config = read_json(folder / "config.json", "a model folder")
    if config.get("quantization_config"):
        raise AdapterError(
            f"{folder}: is quantised already ({_method(config)}); give the model in full precision, fit "
            "quantises it"
        )
    if config.get("vision_config") and importlib.util.find_spec("torchvision") is None:
        raise AdapterError(
            f"{folder}: also sees, and vLLM needs torchvision to serve it, which the CPU packages go "
            "without; use the "
            "family's text-only model, or a machine with a GPU"
        )
    for architecture in config.get("architectures") or ():
        if takes_adapters(str(architecture)) is False:
            raise AdapterError(
                f"{folder}: vLLM serves no LoRA adapter on {architecture}; choose a base of another "
                "family, such as "
                "Qwen, Llama, Mistral, Gemma or Phi 3"
            )
    check_holds(folder, renderer)


def _method(config: dict[str, Any]) -> str:
    settings = config["quantization_config"]
    return str(settings.get("quant_method", "unknown")) if isinstance(settings, dict) else "unknown"
