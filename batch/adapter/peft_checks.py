"""Which LoRA adapters can be served as they were trained. The others are an `AdapterError` with the true
reason.

vLLM refuses some of them well into a run, and silently leaves out parts of others. What an
adapter changes is read off its tensors, never off `target_modules`, which may be leaf names, whole paths, a
regular expression, or null.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from batch.adapter.files import BYTES, Tensor, largest_values, read_json, read_tensors
from batch.adapter.patterns import ALL, check_patterns
from batch.errors import AdapterError

MAX_RANK = 512  # the largest that vLLM's `max_lora_rank` takes
PEFT_PREFIX = "base_model.model."  # in front of the base's own names in a PEFT checkpoint
LARGEST_UPDATE = (
    1e30  # of an update's largest possible value; beyond it float32 overflows within a few layers
)
# Inits that change the base's weights, when training begins or when PEFT loads the adapter; vLLM does not.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
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
    "arrow_config": "routes between adapters, which vLLM does not serve",
    "kasa_config": "is KaSA, which vLLM does not serve",
    "monteclora_config": "is MonteCLoRA, which vLLM does not serve",
    "auto_map": "names remote code, which is never run",
}
# Tensors that are not a LoRA pair of a linear layer, by what their name holds.
FOREIGN_TENSORS = {
    ".lora_embedding_": "adapts an embedding, which is not served",
    "lora_magnitude_vector": "is DoRA's, which vLLM does not serve",
    ".modules_to_save.": "replaces a whole module, which vLLM ignores",
    ".lora_A.bias": "is a bias, which vLLM does not serve",
    ".lora_B.bias": "is a bias, which vLLM does not serve",
    ".base_layer.": "is a layer of the base, not of an adapter; save the adapter alone",
    "embed_tokens.weight": "is the whole embedding, so tokens were added or trained, which is not served",
    "lm_head.weight": "is the whole output layer, which vLLM ignores",
}
UNSERVED_LEAVES = {
    "lm_head": "adapts the output layer, which is not served",
    "embed_tokens": "adapts the embedding, which is not served",
    "wte": "adapts the embedding, which is not served",
}
TOWERS = frozenset({"vision_tower", "vision_model", "visual", "multi_modal_projector", "audio_tower"})


class LoraModule(NamedTuple):
    """A linear layer of the base that an adapter changes by B A, with B ``[outputs, rank]``, A ``[rank,
    inputs]``.
    """

    name: str  # as the base names it
    rank: int
    inputs: int
    outputs: int

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def in_tower(self) -> bool:
        """Whether it belongs to what sees or hears: no text passes through it."""
        return not TOWERS.isdisjoint(self.name.split("."))


def lint(path: Path) -> tuple[LoraModule, ...]:
    """What the PEFT adapter in `path` changes, having checked that vLLM serves all of it. Raises
    `AdapterError`.
    """
    config = read_json(path / "adapter_config.json", "a PEFT adapter")
    _check_config(config, f"{path}: adapter_config.json")
    weights = path / "adapter_model.safetensors"
    tensors = read_tensors(weights)
    modules = _pairs(tensors, weights)
    check_patterns(config, [module.name for module in modules], f"{path}: adapter_config.json")
    for module in modules:
        if module.leaf in UNSERVED_LEAVES:
            raise AdapterError(
                f"{path}: {module.name} {UNSERVED_LEAVES[module.leaf]}; leave it out of the targets"
            )
        if not _is_target(config["target_modules"], module.name):
            raise AdapterError(
                f"{path}: adapter_config.json: target_modules does not name {module.name}, which has "
                "weights, so "
                "PEFT leaves them out; correct target_modules"
            )
        said = _matching(config.get("rank_pattern"), module.name, config["r"])
        if module.rank != said:
            raise AdapterError(
                f"{path}: {module.name} is of rank {module.rank}, not {said} as adapter_config.json says; "
                "copy the folder again"
            )
    _check_values(config, modules, largest_values(weights, tensors), weights)
    return modules


def highest_rank(path: Path, modules: tuple[LoraModule, ...]) -> int:
    """The rank that an engine must have room for: vLLM counts what the config names, used or not."""
    config = read_json(path / "adapter_config.json", "a PEFT adapter")
    named: list[int] = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return max(*named, *(module.rank for module in modules))


def _check_config(config: Mapping[str, Any], where: str) -> None:
    rank, init = config.get("r"), str(config.get("init_lora_weights")).lower()
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    problems = {
        "peft_type": config.get("peft_type") != "LORA" and "is not LoRA",
        "bias": config.get("bias", "none") != "none" and "trains biases, which vLLM ignores",
        "r": not _is_rank(rank) and f"is outside 1 to {MAX_RANK}",
        "rank_pattern": not (isinstance(ranks, dict) and all(map(_is_rank, ranks.values())))
        and f"holds a rank outside 1 to {MAX_RANK}",
        "lora_alpha": not _is_number(config.get("lora_alpha")) and "is not a number",
        "alpha_pattern": not (isinstance(alphas, dict) and all(map(_is_number, alphas.values())))
        and "holds a value that is not a number",
        "target_modules": not _are_targets(config.get("target_modules"))
        and "names no module, so PEFT loads no weights",
        "layers_pattern": not (not config.get("layers_pattern") or _are_targets(config["layers_pattern"]))
        and "is no text and no list of texts",
        "init_lora_weights": init.startswith(CHANGES_BASE) and "changes the base, which vLLM does not do",
        **{key: bool(config.get(key)) and problem for key, problem in UNSERVED.items()},
    }
    for key, problem in problems.items():
        if problem:
            raise AdapterError(f"{where}: {key} {problem}; train a plain LoRA adapter")


def _are_targets(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and text for text in texts)


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_RANK


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value != 0


def _pairs(tensors: Mapping[str, Tensor], weights: Path) -> tuple[LoraModule, ...]:
    """The A and B of each module, and nothing else."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if found is None:
            why = next((why for part, why in FOREIGN_TENSORS.items() if part in name), None)
            if why is None and "lora_" not in name:
                why = "is a whole weight, not the update of one, which vLLM ignores"
            raise AdapterError(
                f"{weights}: {name} {why or 'is not a name that PEFT gives'}; save a plain LoRA adapter "
                "with PEFT"
            )
        if tensor.dtype not in BYTES or len(tensor.shape) != 2:
            raise AdapterError(
                f"{weights}: {name} is {tensor.dtype} of shape {list(tensor.shape)}, not a matrix of "
                "floating-point "
                "numbers; save a plain LoRA adapter with PEFT"
            )
        halves.setdefault(found[1], {})[found[2]] = tensor
    modules = []
    for name, pair in halves.items():
        if len(pair) < 2:
            lost = "B" if "A" in pair else "A"
            raise AdapterError(f"{weights}: lacks lora_{lost} of {name}; copy or train the adapter again")
        if pair["A"].shape[0] != pair["B"].shape[1]:
            raise AdapterError(
                f"{weights}: the shapes of {name}, {list(pair['A'].shape)} and {list(pair['B'].shape)}, "
                "do not form a pair; "
                "copy or train the adapter again"
            )
        modules.append(LoraModule(name, pair["A"].shape[0], pair["A"].shape[1], pair["B"].shape[0]))
    if not modules:
        raise AdapterError(f"{weights}: holds no weights; copy or train the adapter again")
    return tuple(modules)


def _is_target(targets: Any, module: str) -> bool:
    """PEFT's rule: a list holds names or the ends of names, a text is an expression for whole names."""
    if isinstance(targets, str):
        return targets.lower() == ALL or re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _matching(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: a key is a regular expression for the end of a module's name, and the first that fits
    counts.
    """
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def _check_values(
    config: Mapping[str, Any], modules: tuple[LoraModule, ...], largest: Mapping[str, float], weights: Path
) -> None:
    for name, value in largest.items():
        if not math.isfinite(value):
            kind = "NaN" if math.isnan(value) else "a number that overflows"
            raise AdapterError(f"{weights}: {name} holds {kind}; train again with a lower learning rate")
    for module in modules:
        a, b = (largest[f"{PEFT_PREFIX}{module.name}.lora_{side}.weight"] for side in "AB")
        alpha = _matching(config.get("alpha_pattern"), module.name, config["lora_alpha"])
        if not a * b * module.rank * abs(alpha) <= LARGEST_UPDATE:
            raise AdapterError(
                f"{weights}: the update of {module.name} overflows; train with a lower learning rate"
            )
