"""Products on vLLM's CPU backend whose rows do not depend on how many others are computed beside them.

Rounding depends on the order of additions, and a library chooses that by the shape of a product: oneDNN has
another for a single row, MKL some for few rows and on older processors for any. With one order, and with
attention that is not split over threads (`$VLLM_CPU_ATTN_SPLIT_KV`, see `batch.engine.vllm`), an answer in
float32 has the same bits whatever shared its steps. In bfloat16 oneDNN divides longer sums by shape, which
moves last digits.
`tests/batch/engine/test_exact.py` has an engine answer in other orders and numbers.
"""

import torch
from vllm.model_executor.layers import utils

from batch.engine.patches import patch

theirs = utils.cpu_unquantized_gemm


def install() -> None:
    """Put this in vLLM's place, for this process; its layers find the function by its name."""
    patch(utils, "cpu_unquantized_gemm", cpu_unquantized_gemm, made_for="0.32")


def cpu_unquantized_gemm(
    layer: torch.nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`x Wᵀ + bias`, x ``[..., tokens, in]``; a token that is alone is computed as one of two."""
    if x.numel() > x.shape[-1]:
        return theirs(layer, x, weight, bias)
    return theirs(layer, torch.cat([x, x]), weight, bias)[: len(x)]


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x Wᵀ` of two rows or more, by oneDNN in float32 too, which torch would give to MKL."""
    if x.dtype != torch.float32:
        return x @ weight.t()
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result


def add_product(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """`y += x Wᵀ` in place, of two rows or more."""
    if x.dtype != torch.float32:
        y.addmm_(x, weight.t())  # rounds once
    else:
        y += product(x, weight)
