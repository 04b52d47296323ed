"""The base model in 4 bits with a fresh LoRA adapter on it; and the same on the meta device, to count.

Only safetensors are read and no remote code is run. Nothing is downloaded here:
`batch.adapter.base_model.resolve_base` does that, and only with `BATCH_ROUTE_ONLINE=1`.
"""

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from batch.adapter.peft_checks import TOWERS
from batch.engine.expand import load_base
from batch.errors import AdapterError, EngineError
from train.config import Config, Lora, Quantisation, Shape
from train.fit.shape import base_on_meta


def compute_dtype(quantisation: Quantisation) -> torch.dtype:
    """The dtype that the 4-bit weights are expanded to for each product.

    A GPU without bfloat16 in hardware (T4) computes it in float32 anyway, and float16 would need its losses
    scaled and overflows where a base was trained in bfloat16: float32 there, as on a CPU.
    """
    if quantisation.compute_dtype != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[quantisation.compute_dtype]
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32


def lora_config(lora: Lora, base_ref: str, model: PreTrainedModel) -> LoraConfig:
    """PEFT's config. `base_ref` goes into `adapter_config.json` as given, so that no local path gets out.

    Of a model that also sees or hears, only the layers that a text passes through are trained.
    """
    wrapped = model.config.get_text_config() is not model.config
    return LoraConfig(
        exclude_modules=rf"(.*\.)?({'|'.join(sorted(TOWERS))})\..*" if wrapped else None,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target,
        bias="none",  # vLLM serves neither biases, nor DoRA, nor whole saved modules
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_ref,
    )


def load_quantised(folder: Path, config: Config) -> PeftModel:
    """The base in `folder`, quantised as it is loaded, frozen, with an untrained adapter. Raises
    `AdapterError`.
    """
    base = prepare_model_for_kbit_training(
        _load_base(folder, config.quantisation),
        use_gradient_checkpointing=config.training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    return get_peft_model(base, lora_config(config.lora, config.base.model, base))


def load_trained(folder: Path, quantisation: Quantisation, adapter: Path) -> PeftModel:
    """The base in `folder`, quantised as training had it, with the adapter of a bundle. Raises
    `AdapterError`.
    """
    return PeftModel.from_pretrained(_load_base(folder, quantisation), adapter).eval()


def _load_base(folder: Path, quantisation: Quantisation) -> PreTrainedModel:
    device = 0 if torch.cuda.is_available() else "cpu"
    try:
        return load_base(folder, quantisation.type, quantisation.double, compute_dtype(quantisation), device)
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"{folder}: the GPU has too little memory for the base; free some, run again"
        ) from error
    except Exception as error:  # torch, safetensors and bitsandbytes each have their own
        raise AdapterError(
            f"{folder}: the base model does not load: {_first_line(error)}; copy it again"
        ) from error


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, the same bytes for the same adapter.

    PEFT lists the target modules in an order that changes from run to run, and each layer's apart where they
    are few: their last names say the same. It also writes a card; the bundle has its own.
    """
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["target_modules"] = sorted({name.rpartition(".")[2] for name in content["target_modules"]})
    path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def on_meta(shape: Shape | Path, lora: Lora) -> PeftModel:
    """A model of this shape (or of the model folder's) with its adapter and without weights, in no time and
    memory. Raises `AdapterError`, `ConfigError`.
    """
    base = base_on_meta(shape)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(base, lora_config(lora, "", base))


def count_parameters(model: PeftModel) -> dict[str, int]:
    """Trainable and all parameters; a 4-bit weight counts as the parameters that it packs, tied ones once."""
    trainable, total = model.get_nb_trainable_parameters()
    return {"trainable": int(trainable), "total": int(total)}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
