"""What an adapter or a base model may not be: each finding is an `AdapterError` that names the key and the
remedy.

vLLM refuses some of it when a run has long begun, and ignores the rest without a word.
"""

import json
from pathlib import Path
from typing import Any

from batch.errors import AdapterError

MAX_RANK = 512  # the largest that vLLM's `max_lora_rank` takes
PEFT_PREFIX = "base_model.model."  # in front of the base's own names in a PEFT checkpoint
# Inits that change the base's weights when PEFT loads the adapter; vLLM does not.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
UNSERVED = {
    "use_dora": "is DoRA, which vLLM does not serve",
    "modules_to_save": "replaces whole modules, which vLLM ignores",
    "trainable_token_indices": "trains embeddings, which vLLM ignores",
    "target_parameters": "trains bare parameters, which this project does not serve",
    "lora_bias": "trains biases, which vLLM does not serve",
    "layer_replication": "repeats layers, which vLLM does not serve",
    "alora_invocation_tokens": "is activated LoRA, which vLLM does not serve",
    "use_qalora": "is QALoRA, which vLLM does not serve",
    "use_bdlora": "is block-diagonal LoRA, which vLLM does not serve",
    "auto_map": "names remote code, which is never run",
}


def lint(path: Path) -> int:
    """Check that vLLM can serve the adapter in `path` as trained, and return its rank. Raises
    `AdapterError`.
    """
    config = read_json(path / "adapter_config.json", "a PEFT adapter")
    rank, init = config.get("r"), str(config.get("init_lora_weights")).lower()
    problems = {
        "peft_type": config.get("peft_type") != "LORA" and "is not LoRA",
        "bias": config.get("bias", "none") != "none" and "trains biases, which vLLM ignores",
        "r": not (type(rank) is int and 0 < rank <= MAX_RANK) and f"is outside 1 to {MAX_RANK}",
        "init_lora_weights": init.startswith(CHANGES_BASE) and "changes the base, which vLLM does not do",
        **{key: bool(config.get(key)) and problem for key, problem in UNSERVED.items()},
    }
    for key, problem in problems.items():
        if problem:
            raise AdapterError(f"{path}: adapter_config.json: {key} {problem}; train a plain LoRA adapter")
    modules, shapes = config.get("target_modules") or [], tensor_shapes(path / "adapter_model.safetensors")
    if isinstance(modules, list) and (
        dead := sorted(m for m in modules if not any(f".{m}." in name for name in shapes))
    ):
        raise AdapterError(
            f"{path}: target module {dead[0]!r} has no weights in adapter_model.safetensors; train again"
        )
    for name, shape in sorted(shapes.items()):
        if ".lora_A." in name and not config.get("rank_pattern") and shape[:1] != [rank]:
            raise AdapterError(
                f"{path}: {name} is of shape {shape}, not of rank {rank} as adapter_config.json "
                "says; train again"
            )
    return int(config["r"])


def check_fits(adapter: Path, base: Path) -> None:
    """Every module that the adapter changes must be one of the base's: vLLM ignores the others without a
    word.
    """
    known = {name for file in base.glob("*.safetensors") for name in tensor_shapes(file)}
    for name in sorted(tensor_shapes(adapter / "adapter_model.safetensors")):
        module = name.removeprefix(PEFT_PREFIX).partition(".lora_")[0]
        if f"{module}.weight" not in known:
            raise AdapterError(
                f"{adapter}: its module {module} is not in the base model {base}; it was trained "
                "on another, name that one"
            )


def no_remote_code(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in read_json(folder / name, "a model folder"):
            raise AdapterError(
                f"{folder}: {name} names remote code (auto_map), which is never run; use a "
                "standard architecture"
            )


def read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path.parent} is not {what}: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read: {error}; copy the folder again") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path}: is not a JSON object; copy the folder again")
    return content


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Name → shape from a safetensors header: eight bytes of length, then JSON (the format's
    specification).
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(100_000_000, path.stat().st_size - 8):
                raise ValueError("the header's length is impossible")
            header = json.loads(file.read(length))
            return {name: list(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path}: is not a safetensors file: {error}; copy the bundle again") from error
