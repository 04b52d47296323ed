"""LoRA on vLLM's CPU backend as a few matrix products, instead of a copy of the weights for every token.

vLLM 0.32 gathers an adapter's matrices once per token (`lora/ops/torch_ops/lora_ops.py`) and multiplies each
token by its own copy, which moves rank × width numbers a token. Here the loaded adapters stand side by side
as one adapter of rank slots × rank; a token keeps the columns of its own and loses the others.
`tests/batch/engine/cpu/test_lora.py` proves both equal to float tolerance.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper import punica_cpu

from batch.engine.cpu.linear import add_product, product
from batch.engine.patches import patch

THEIRS = punica_cpu.PunicaWrapperCPU


def install() -> None:
    """Put this in vLLM's place, for this process; vLLM finds the class by its name."""
    patch(punica_cpu, "PunicaWrapperCPU", SideBySide, made_for="0.32")


class SideBySide(THEIRS):  # type: ignore[misc,valid-type]
    """vLLM's wrapper around its LoRA products, with those of linear layers done for all tokens at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own: dict[tuple[int, torch.dtype], torch.Tensor] = {}  # of the running step, by slots and dtype

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._own.clear()

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """`y[:, slice] += scale × x Aᵀ Bᵀ` for each slice (q, k and v, say) and each token's own adapter, in
        place.

        y ``[tokens, all slices]``, x ``[tokens, in]``, A ``[slots, 1, rank, in]`` and B ``[slots, 1, out,
        rank]`` a slice.
        """
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if len(x) == 1:  # as one of two, see `linear.py`
            twice = y.repeat(2, 1)
            self.add_lora_linear(twice, x.repeat(2, 1), lora_a_stacked, lora_b_stacked, scale, output_slices)
            y.copy_(twice[:1])
            return
        slots, rank = lora_a_stacked[0].shape[0], lora_a_stacked[0].shape[-2]
        own = self._own_columns(slots, x.dtype)
        start = 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            shrunk = product(x, a.view(slots * rank, -1))
            shrunk.view(-1, slots, rank).mul_(own if scale == 1.0 else own * scale)
            # A single slot is as it lies; several are laid next to each other: [slots, out, rank] →
            # [out, slots × rank].
            side_by_side = b.view(slots, -1, rank).transpose(0, 1).reshape(-1, slots * rank)
            add_product(y[:, start : start + size], shrunk, side_by_side)
            start += size

    def _own_columns(self, slots: int, dtype: torch.dtype) -> torch.Tensor:
        """1 where a token uses a slot's adapter, else 0: ``[tokens, slots, 1]``; all 0 for a token without
        one (index -1).
        """
        key = (slots, dtype)
        if key not in self._own:
            self._own[key] = (
                (self.token_lora_indices.unsqueeze(1) == torch.arange(slots)).to(dtype).unsqueeze(2)
            )
        return self._own[key]
