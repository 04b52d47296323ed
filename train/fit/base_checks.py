"""What a base model's files tell without torch: whether `fit` can train on it, and vLLM serve the result."""

import ast
import functools
import importlib.util
import math
from pathlib import Path
from typing import Any

from batch.adapter.base_model import check_holds
from batch.adapter.files import BYTES, largest_values, read_json, read_tensors
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.engine.architectures import takes_adapters
from batch.errors import AdapterError

CAUSAL_MODELS = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


def checked_renderer(folder: Path, contract: Contract) -> Renderer:
    """The base's renderer. A base that would fail after the training, or not at all and be wrong, is refused.

    Raises `AdapterError`.
    """
    renderer = Renderer.load(folder, contract)
    config = read_json(folder / "config.json", "a model folder")
    if config.get("quantization_config"):
        raise AdapterError(
            f"{folder}: is quantised already ({_method(config)}); give the model in full precision, fit "
            "quantises it"
        )
    kind = str(config.get("model_type"))
    if (known := text_models()) and kind not in known:
        raise AdapterError(
            f"{folder}: config.json is of no model that answers in text: the installed transformers has no "
            f"causal language model of type {kind!r}; use a standard architecture"
        )
    if config.get("vision_config") and importlib.util.find_spec("torchvision") is None:
        raise AdapterError(
            f"{folder}: also sees, and vLLM needs torchvision to serve it, which the CPU packages go "
            "without; use the family's text-only model, or a machine with a GPU"
        )
    architectures = config.get("architectures")
    if not (isinstance(architectures, list) and architectures):
        raise AdapterError(
            f"{folder}: config.json names no architecture, which vLLM needs; copy the folder again"
        )
    for architecture in architectures:
        if takes_adapters(str(architecture)) is False:
            raise AdapterError(
                f"{folder}: vLLM serves no LoRA adapter on {architecture}; choose a base of another "
                "family, such as Qwen, Llama, Mistral, Gemma or Phi 3"
            )
    check_holds(folder, renderer)
    for file in sorted(folder.glob("*.safetensors")):
        read_tensors(file)
    return renderer


@functools.cache
def text_models() -> frozenset[str]:
    """The model types that `AutoModelForCausalLM` takes, read in its source; none where that cannot be.

    To import it takes longer than all other checks together.
    """
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        return frozenset()
    source = Path(found.origin).parent / "models/auto/modeling_auto.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body if source.is_file() else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == CAUSAL_MODELS:
            pairs = (each.elts[0] for each in ast.walk(node.value) if isinstance(each, ast.Tuple))
            return frozenset(str(name.value) for name in pairs if isinstance(name, ast.Constant))
    return frozenset()


def check_finite(folder: Path) -> None:
    """Refuse a base of which a weight is no number: nothing that is trained on it is one. Reads it all."""
    for file in sorted(folder.glob("*.safetensors")):
        tensors = {name: tensor for name, tensor in read_tensors(file).items() if tensor.dtype in BYTES}
        for name, value in largest_values(file, tensors).items():
            if not math.isfinite(value):
                raise AdapterError(f"{file}: {name} holds a value that is no number; copy the folder again")


def _method(config: dict[str, Any]) -> str:
    settings = config["quantization_config"]
    return str(settings.get("quant_method", "unknown")) if isinstance(settings, dict) else "unknown"
