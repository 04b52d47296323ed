"""What is asked of a part of the engine: of each process that holds some of the model, or of the only one."""

from typing import Any


def placed_pairs(worker: Any, lora_id: int) -> int:
    """How many pairs of matrices of a loaded adapter lie in a layer of the worker's model."""
    manager = worker.model_runner.lora_manager._adapter_manager
    adapter, pairs = manager.get_adapter(lora_id), 0
    for name in manager.modules:
        if weights := manager._get_lora_layer_weights(adapter, name):
            parts = weights.lora_a if isinstance(weights.lora_a, list) else [weights.lora_a]
            pairs += sum(part is not None for part in parts)
    return pairs


def compiled(worker: Any) -> dict[str, str]:
    """How vLLM runs its steps, which it decides when it has seen the model's attention."""
    config = worker.vllm_config.compilation_config
    return {"cudagraph_mode": config.cudagraph_mode.name, "compilation_mode": config.mode.name}
