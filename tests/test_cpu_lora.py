"""Our LoRA products equal vLLM's own, for tokens of mixed adapters; a token without an adapter gets nothing."""

import pytest
import torch
from vllm.lora.ops.torch_ops import lora_ops

from batch.engine import cpu_lora

TOKENS, SLOTS, RANK, WIDTH = 37, 3, 16, 96
# Fetched when this module is imported: before any engine of this process could have put ours in their place.
THEIRS = {"shrink": lora_ops.bgmv_shrink, "expand": lora_ops.bgmv_expand, "expand_slice": lora_ops.bgmv_expand_slice}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(TOKENS, WIDTH, generator=generator),
        "h": torch.randn(TOKENS, RANK, generator=generator),
        "a": torch.randn(SLOTS, 1, RANK, WIDTH, generator=generator),
        "b": torch.randn(SLOTS, 1, WIDTH, RANK, generator=generator),
        "adapters": torch.randint(0, SLOTS, (TOKENS,), generator=generator),
        "y": torch.randn(TOKENS, 2 * WIDTH, generator=generator),
    }


def test_shrink_equals_the_original(tensors: dict[str, torch.Tensor]) -> None:
    ours, theirs = torch.zeros(TOKENS, RANK), torch.zeros(TOKENS, RANK)
    cpu_lora.shrink(tensors["x"], tensors["a"], ours, tensors["adapters"], 0.5)
    THEIRS["shrink"](tensors["x"], tensors["a"], theirs, tensors["adapters"], 0.5)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("add", [True, False])
def test_expand_equals_the_original(tensors: dict[str, torch.Tensor], add: bool) -> None:
    for name, ours_function, extra in (("expand", cpu_lora.expand, ()), ("expand_slice", cpu_lora.expand_slice, (WIDTH // 2, WIDTH))):
        ours, theirs = tensors["y"].clone(), tensors["y"].clone()
        ours_function(tensors["h"], tensors["b"], ours, tensors["adapters"], *extra, add_inputs=add)
        THEIRS[name](tensors["h"], tensors["b"], theirs, tensors["adapters"], *extra, add_inputs=add)
        torch.testing.assert_close(ours, theirs)
        assert not torch.equal(ours, tensors["y"])


def test_a_token_without_an_adapter_gets_nothing(tensors: dict[str, torch.Tensor]) -> None:
    """vLLM's own takes index -1 for the last slot; mixed batches of adapted and plain rows need it to be none."""
    adapters = tensors["adapters"].clone()
    adapters[::2] = -1
    y = tensors["y"].clone()
    cpu_lora.expand(tensors["h"], tensors["b"], y, adapters)
    assert torch.equal(y[::2], tensors["y"][::2]) and not torch.equal(y[1::2], tensors["y"][1::2])
