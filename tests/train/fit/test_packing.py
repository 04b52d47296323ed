"""Rows behind one copy of their prompt: the loss and the gradient of the padded batch, to float tolerance."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn import functional
from transformers import AutoModelForCausalLM
from trl.kernels import chunked_logprob
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from tests.conftest import ROOT
from train.config import Config
from train.dataset import load_rows
from train.examples import IGNORED, encode
from train.fit.inputs import prepare
from train.fit.packing import Collator, pack
from train.fit.qlora import build_trainer


def loss_and_gradient(base: Path, batch: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base)
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False).logits
    loss = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED
    )
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_packed_batch_is_the_padded_batch(tiny_base: Path, contract: Contract, rows: int) -> None:
    renderer = Renderer.load(tiny_base, contract)
    examples = encode(load_rows(ROOT / "data/v1/train.jsonl", contract)[:rows], renderer)
    padded = DataCollatorForLanguageModeling(pad_token_id=renderer.pad_id)(examples)
    packed = pack(examples)
    own = sum(len(example["input_ids"]) - len(renderer.prefix_ids) for example in examples)
    assert packed["input_ids"].shape[1] <= len(renderer.prefix_ids) + own
    (loss, gradient), (expected, wanted) = (
        loss_and_gradient(tiny_base, packed),
        loss_and_gradient(tiny_base, padded),
    )
    assert loss == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-3)


def test_rows_that_share_nothing_or_everything() -> None:
    """The first token learned needs its predecessor in front of it, wherever the rows part."""
    apart = pack(
        [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}, {"input_ids": [4, 5], "labels": [-100, 5]}]
    )
    assert apart["input_ids"].tolist() == [[1, 2, 3, 4, 5]] and apart["position_ids"].tolist() == [
        [0, 1, 2, 0, 1]
    ]
    assert apart["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    alike = pack(
        [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}]
    )
    assert alike["input_ids"].tolist() == [[1, 2, 3, 1, 2, 3]] and alike["labels"].tolist() == [
        [-100, 2, 3, -100, 2, 3]
    ]


@pytest.mark.parametrize(
    ("changes", "packs"),
    [
        ({}, True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"layer_types": ["linear_attention", "full_attention"]}, False),
        ({"sliding_window": 512}, False),
        ({"sliding_window": 512, "use_sliding_window": False}, True),
        ({"_attn_implementation": "eager"}, False),
    ],
    ids=str,
)
def test_a_model_that_cannot_read_packs_gets_padded_rows(changes: dict[str, Any], packs: bool) -> None:
    config = SimpleNamespace(
        **{"_attn_implementation": "sdpa", "layer_types": None, "sliding_window": None, **changes}
    )
    examples = [{"input_ids": [*range(50), i, 60], "labels": [*[-100] * 51, 60]} for i in (1, 2)]
    batch = Collator(config, pad_id=0)(examples)
    assert (batch["input_ids"].shape == (1, 54)) == packs and (batch["input_ids"].shape == (2, 52)) != packs


def test_rows_with_little_in_common_are_padded() -> None:
    """Attention over all of them would cost more than the prompt that is computed once saves."""
    config = SimpleNamespace(_attn_implementation="sdpa", layer_types=None, sliding_window=None)
    examples = [{"input_ids": [i] * 50 + [60], "labels": [*[-100] * 50, 60]} for i in range(4)]
    assert Collator(config, pad_id=0)(examples)["input_ids"].shape == (4, 51)


def test_logits_are_made_for_the_learned_tokens_only(
    tiny_base: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a CPU too; TRL's loss stays what it is. Fails without the line in `build_trainer`, and when TRL renames what it sets."""
    widths: list[int] = []
    whole = chunked_logprob.ChunkedLogProbFunction.forward

    def counted(ctx: Any, states: torch.Tensor, *rest: Any) -> Any:
        widths.append(len(states))
        return whole(ctx, states, *rest)

    monkeypatch.setattr(chunked_logprob.ChunkedLogProbFunction, "forward", staticmethod(counted))
    shipped = Config.load(ROOT / "train/mini.toml")
    config = dataclasses.replace(shipped, base=dataclasses.replace(shipped.base, model=str(tiny_base)))
    trainer = build_trainer(prepare(config), tmp_path, Console(quiet=True))
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch))
    assert widths == [int((batch["labels"] != IGNORED).sum())]
    logits = trainer.model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    expected = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED
    )
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
