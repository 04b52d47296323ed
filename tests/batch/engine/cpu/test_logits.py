"""Logits that wait for the grammar's mask against those of the whole output layer."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.lora.layers import LogitsProcessorWithLoRA
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.v1.sample.sampler import Sampler

from batch.engine.cpu import logits, sampling
from tests.batch.engine.cpu.test_sampling import assert_same, metadata

VOCABULARY, HIDDEN = 2000, 48


class OutputLayer:
    """As vLLM keeps one on a CPU, with some padding."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.weight = torch.randn(VOCABULARY + 48, HIDDEN, generator=torch.Generator().manual_seed(1)).to(
            dtype
        )
        self.quant_method: Any = UnquantizedEmbeddingMethod()
        self.tp_size = 1
        self.rows = 0  # multiplied by the whole of it

    def cpu_linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        assert len(x), "vLLM's kernel for some shapes divides by the number of rows"
        self.rows += len(x)
        return torch.nn.functional.linear(x, weight, bias)


def processor(**settings: Any) -> Any:
    logits.install()
    with set_current_vllm_config(VllmConfig()):
        return LogitsProcessor(VOCABULARY, **settings)


def hidden(rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize(
    "settings", [{}, {"soft_cap": 3.0}, {"scale": 0.25}, {"soft_cap": 3.0, "scale": 2.0}]
)
@pytest.mark.parametrize("biased", [False, True])
def test_single_logits_are_those_of_the_whole_product(settings: dict[str, Any], biased: bool) -> None:
    layer, states = OutputLayer(torch.float32), hidden(9)
    bias = torch.linspace(-1, 1, len(layer.weight)) if biased else None
    waiting = processor(**settings)(layer, states, bias)
    assert waiting.shape == (9, VOCABULARY) and layer.rows == 0
    rows, tokens = np.array([0, 0, 8, 3]), np.array([5, 1999, 0, 77])
    torch.testing.assert_close(waiting.of(rows, tokens), waiting[:][rows, tokens])
    assert waiting.of(rows[:0], tokens[:0]).tolist() == []


def test_a_logit_does_not_depend_on_the_others() -> None:
    layer, states = OutputLayer(torch.float32), hidden(40)
    rows: np.ndarray = np.arange(40)
    tokens: np.ndarray = rows * 49
    together = processor()(layer, states).of(rows, tokens)
    for row in range(40):
        alone = processor()(layer, states[row : row + 1]).of(rows[:1], tokens[row : row + 1])
        assert torch.equal(alone, together[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_choice_is_that_among_all_logits(dtype: torch.dtype) -> None:
    """In float32, so that of bfloat16 weights it rounds less than vLLM's own."""
    layer, states = OutputLayer(dtype), hidden(30, dtype)
    legal: np.ndarray = np.zeros((30, VOCABULARY // 32 * 32 + 32), dtype=np.uint8)
    random = np.random.default_rng(3)
    for row in range(30):
        legal[row, random.permutation(VOCABULARY)[: [1, 5, VOCABULARY][row % 3]]] = 1
    bitmask = np.packbits(legal, axis=1, bitorder="little").view(np.int32)
    waiting = processor()(layer, states)
    setattr(waiting, sampling.MASK, bitmask)
    found = sampling.GreedySampler()(waiting, metadata())
    assert layer.rows == 10  # those with many legal tokens

    whole = torch.nn.functional.linear(states.float(), layer.weight.float())[:, :VOCABULARY]
    if dtype == torch.bfloat16:
        many = slice(2, None, 3)
        whole[many] = torch.nn.functional.linear(states, layer.weight)[many, :VOCABULARY].float()
    whole[torch.from_numpy(legal[:, :VOCABULARY] == 0)] = float("-inf")
    assert_same(found, Sampler()(whole, metadata()))


def test_where_all_are_few_the_output_layer_is_left_out() -> None:
    layer = OutputLayer(torch.float32)
    waiting = processor()(layer, hidden(4))
    setattr(waiting, sampling.MASK, np.eye(4, VOCABULARY // 32 + 1, dtype=np.int32) * 6)
    found = sampling.GreedySampler()(waiting, metadata())
    assert [token // 32 for token in found.sampled_token_ids.flatten().tolist()] == [0, 1, 2, 3]


def test_other_requests_have_all_logits() -> None:
    layer, states = OutputLayer(torch.float32), hidden(6)
    found = sampling.GreedySampler()(processor()(layer, states), metadata(max_num_logprobs=7))
    theirs = Sampler()(
        torch.nn.functional.linear(states, layer.weight)[:, :VOCABULARY], metadata(max_num_logprobs=7)
    )
    assert found.logprobs_tensors.logprobs.tolist() == theirs.logprobs_tensors.logprobs.tolist()


def test_an_adapted_or_quantized_output_layer_is_not_waited_for() -> None:
    layer, states = OutputLayer(torch.float32), hidden(3)
    layer.quant_method = SimpleNamespace(apply=lambda layer, x, bias: layer.cpu_linear(x, layer.weight, bias))
    whole = processor()(layer, states)
    assert isinstance(whole, torch.Tensor) and whole.shape == (3, VOCABULARY)
    # vLLM calls the method of the layer inside with the adapted one as its self
    adapted = SimpleNamespace(
        base_layer=processor(), logits_as_input=False, soft_cap=None, scale=1.0, _get_logits=lambda *_: whole
    )
    layer.quant_method = UnquantizedEmbeddingMethod()
    assert LogitsProcessorWithLoRA.forward(adapted, layer, states) is whole
