"""LoRA on vLLM's CPU backend as one matrix product an adapter, instead of a copy of the weights for every token.

vLLM 0.32 gathers an adapter's matrices once per token (`lora/ops/torch_ops/lora_ops.py`) and multiplies each token by
its own copy, which moves rank × width numbers a token. The same sum is a product of all tokens with each loaded
adapter's matrix, masked to the tokens that use it. `tests/test_cpu_lora.py` proves both equal to float tolerance.
"""

import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu


def install() -> None:
    """Put these products in vLLM's place, for this process."""
    for module in (lora_ops, punica_cpu):
        module.bgmv_shrink = shrink
        module.bgmv_expand = expand
        module.bgmv_expand_slice = expand_slice


def product(inputs: torch.Tensor, weights: torch.Tensor, adapters: torch.Tensor) -> torch.Tensor:
    """``[tokens, in] × [slots, out, in] → [tokens, out]``; a token with adapter -1 gets zeros.

    There is no branch on the data, so that it can be compiled; an idle slot costs one product.
    """
    if weights.dim() == 4:
        weights = weights.squeeze(1)
    total = None
    for slot in range(weights.shape[0]):
        part = (inputs @ weights[slot].t()) * (adapters == slot).unsqueeze(1)
        total = part if total is None else total + part
    assert total is not None  # there is always a slot
    return total


def shrink(inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, adapters: torch.Tensor, scaling: float = 1.0) -> None:
    """`output[:, :rank] = scaling × inputs A`."""
    output[:, : weights.shape[-2]] = scaling * product(inputs.to(output.dtype), weights.to(output.dtype), adapters)


def expand(inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, adapters: torch.Tensor, add_inputs: bool = True) -> None:
    """`output[:, :width] (+)= inputs B`, over the width that both have."""
    width = min(weights.shape[-2], output.shape[1])
    expand_slice(inputs, weights[..., :width, :], output, adapters, 0, width, add_inputs)


def expand_slice(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    adapters: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """`output[:, offset:offset+size] (+)= inputs B`."""
    part = product(inputs.to(output.dtype), weights.to(output.dtype), adapters)
    target = output[:, slice_offset : slice_offset + slice_size]
    target.add_(part) if add_inputs else target.copy_(part)
