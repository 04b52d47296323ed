"""Our LoRA products equal vLLM's own, for tokens of mixed adapters; a token without an adapter gets nothing."""

from typing import Any

import pytest
import torch
from vllm.lora.layers import LoRAMapping

from batch.engine.cpu import lora

RANK, WIDTH, SLICES = 16, 96, (96, 32, 32)  # as of q, k and v
IDS = [7, 8, 9]  # of the adapters in the slots


def wrapper(kind: Any, rows: list[int], slots: int, prefill: bool) -> Any:
    """vLLM's metadata for `rows`, the adapter's id of each token, 0 for none."""
    made = kind(256, 64, device="cpu")
    mapping = LoRAMapping(index_mapping=tuple(rows), prompt_mapping=tuple(rows), is_prefill=prefill)
    made.update_metadata(mapping, IDS[:slots], slots, vocab_size=1000)
    return made


def weights(slots: int, dtype: torch.dtype) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(slots)
    a = tuple(torch.randn(slots, 1, RANK, WIDTH, generator=generator).to(dtype) for _ in SLICES)
    b = tuple(torch.randn(slots, 1, size, RANK, generator=generator).to(dtype) for size in SLICES)
    return a, b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("slots", [1, 3])
def test_equals_the_original_for_tokens_of_mixed_adapters(
    slots: int, prefill: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [IDS[i] for i in torch.randint(0, slots, (37,), generator=generator).tolist()]
    x = torch.randn(len(rows), WIDTH, generator=generator).to(dtype)
    y = torch.randn(len(rows), sum(SLICES), generator=generator).to(dtype)
    found = []
    for kind in (lora.SideBySide, lora.THEIRS):
        output = y.clone()
        wrapper(kind, rows, slots, prefill).add_lora_linear(output, x, *weights(slots, dtype), 0.5, SLICES)
        found.append(output)
    ours, theirs = found
    assert not torch.equal(ours, y)
    # bfloat16 has 8 bits; the original rounds once more than ours does.
    torch.testing.assert_close(
        ours,
        theirs,
        **({"rtol": 0.02, "atol": 0.5} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}),
    )


def test_a_token_without_an_adapter_gets_nothing() -> None:
    """vLLM's own takes index -1 for the last slot; mixed batches of adapted and plain rows need it to be none."""
    rows = [0, 7, 9, 0, 8, 8, 0]
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(len(rows), WIDTH, generator=generator),
        torch.randn(len(rows), sum(SLICES), generator=generator),
    )
    output = y.clone()
    wrapper(lora.SideBySide, rows, 3, prefill=False).add_lora_linear(
        output, x, *weights(3, torch.float32), 1.0, SLICES
    )
    for row, adapter in enumerate(rows):
        assert torch.equal(output[row], y[row]) == (adapter == 0)


def test_the_columns_follow_the_step() -> None:
    """The mask of a step must not serve the next one, whose tokens have other adapters."""
    x, y = torch.ones(2, WIDTH), torch.zeros(2, sum(SLICES))
    punica = wrapper(lora.SideBySide, [7, 0], 3, prefill=False)
    first, second = y.clone(), y.clone()
    punica.add_lora_linear(first, x, *weights(3, torch.float32), 1.0, SLICES)
    punica.update_metadata(LoRAMapping((0, 7), (0, 7), is_prefill=False), IDS, 3, vocab_size=1000)
    punica.add_lora_linear(second, x, *weights(3, torch.float32), 1.0, SLICES)
    assert torch.equal(first.flip(0), second) and bool(first[0].any())


@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 100])
def test_a_tokens_result_does_not_depend_on_the_others(tokens: int) -> None:
    """In float32, bit for bit; MKL would add up few rows in another order than many."""
    generator = torch.Generator().manual_seed(0)
    rows, width, rank = [IDS[row % 3] for row in range(200)], 1536, 16
    x = torch.randn(len(rows), width, generator=generator)
    a, b = (torch.randn(3, 1, *size, generator=generator) for size in ((rank, width), (64, rank)))

    def added(start: int, stop: int) -> torch.Tensor:
        y = torch.zeros(stop - start, 64)
        wrapper(lora.SideBySide, rows[start:stop], 3, prefill=False).add_lora_linear(  # type: ignore[attr-defined]
            y, x[start:stop], (a,), (b,), 1.0, (64,)
        )
        return y

    whole = added(0, len(rows))
    for start in (0, 90):
        assert torch.equal(added(start, start + tokens), whole[start : start + tokens])
