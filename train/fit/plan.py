"""`plan`: what a recipe will train, in how many steps and how much memory; loads and downloads no model."""

import dataclasses
import math
from pathlib import Path

import torch
from peft import PeftModel
from rich.table import Table

from batch.adapter.base_model import local_folder, resolve_base
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.errors import AdapterError, ConfigError
from train.config import Config, Training
from train.dataset import Row
from train.examples import count_tokens, encode
from train.fit.base_checks import check_base
from train.fit.inputs import load_splits
from train.fit.model import compute_dtype, count_parameters, on_meta

GIB = 1 << 30
BYTES_PER_TOKEN = 4  # of English under a large vocabulary, where no tokenizer is here to count
# Bytes a 4-bit weight: half a byte, an absmax for each 64 weights as float32, or with double quantisation as
# one byte and a float32 for each 256 of those (QLoRA, arXiv:2305.14314, section 3).
FOUR_BIT = {False: 0.5 + 4 / 64, True: 0.5 + 1 / 64 + 4 / (64 * 256)}


@dataclasses.dataclass(frozen=True)
class FitPlan:
    trainable: int
    total: int
    rows: int
    steps: int
    steps_per_epoch: int
    tokens_per_epoch: int
    supervised_per_epoch: int | None  # None where tokens are estimated
    longest: int  # tokens of the longest row
    memory: dict[str, tuple[float, str]]  # part → bytes, formula
    folded: bool = False  # the base's template has no system turn

    @property
    def percent(self) -> float:
        return 100 * self.trainable / self.total


def make_plan(config: Config) -> FitPlan:
    """Count what can be counted here. Raises as `fit` does, and `ConfigError` without a base or its shape."""
    contract = Contract.load(config.find(config.data.contract))
    try:
        base: Path | None = resolve_base(config.base.model, config.base.revision, near=config.path)
    except AdapterError as error:
        if local_folder(config.base.model, near=config.path):  # it is here, and wrong
            raise
        if config.base.shape is None:
            raise ConfigError(f"{config.path}: {error}; or give its shape under [base.shape]") from error
        base = None
    renderer = Renderer.load(base, contract) if base else None
    if base and renderer:
        check_base(base, renderer)
    rows = load_splits(config, contract, renderer)["train"]
    model = on_meta(base or config.base.shape, config.lora)  # type: ignore[arg-type]
    counts = count_parameters(model)
    if renderer:
        examples = encode(rows, renderer)
        lengths = [len(example["labels"]) for example in examples]
        supervised = count_tokens(examples)["supervised"]
    else:
        lengths, supervised = [_estimate(row, contract) for row in rows], None
    per_epoch = steps_per_epoch(len(rows), config.training)
    return FitPlan(
        **counts,
        rows=len(rows),
        steps=config.training.max_steps
        if config.training.max_steps > 0
        else math.ceil(config.training.epochs * per_epoch),
        steps_per_epoch=per_epoch,
        tokens_per_epoch=sum(lengths),
        supervised_per_epoch=supervised,
        longest=max(lengths),
        memory=estimate_memory(model, config, max(lengths)),
        folded=renderer is not None and renderer.style.folded,
    )


def steps_per_epoch(rows: int, training: Training) -> int:
    """Optimiser steps that see every row once; the last may see fewer rows."""
    return math.ceil(math.ceil(rows / training.batch_size) / training.gradient_accumulation)


def estimate_memory(model: PeftModel, config: Config, longest: int) -> dict[str, tuple[float, str]]:
    """Bytes by part, each with its formula, for a batch of the longest rows; without the CUDA context."""
    shape, training = model.config.get_text_config(), config.training
    output = model.get_output_embeddings()
    linear = [m.weight.numel() for m in model.modules() if type(m) is torch.nn.Linear and m is not output]
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    packed = sum(linear) - adapter  # LoRA's own matrices are linear layers too
    whole = sum(p.numel() for p in model.parameters()) - adapter - packed
    # A recipe with a shape is meant for a GPU, wherever `plan` itself runs.
    on_gpu = config.quantisation.compute_dtype == "auto" and config.base.shape is not None
    width = 2 if on_gpu or compute_dtype(config.quantisation) == torch.bfloat16 else 4
    tokens = training.batch_size * longest
    # Kept for the backward pass in each layer: inputs of two norms and of seven projections, and the
    # products' halves.
    own_heads, hidden = shape.num_attention_heads, shape.hidden_size
    heads = own_heads + 2 * (getattr(shape, "num_key_value_heads", None) or own_heads)
    head_size = getattr(shape, "head_dim", None) or hidden // own_heads
    per_layer = 6 * hidden + 4 * heads * head_size + 5 * getattr(shape, "intermediate_size", 4 * hidden)
    if training.gradient_checkpointing:
        kept = shape.num_hidden_layers * shape.hidden_size + per_layer
        formula = (
            f"{tokens} tokens x ({shape.num_hidden_layers} layer inputs + one layer recomputed) x "
            f"{width} bytes"
        )
    else:
        kept = shape.num_hidden_layers * per_layer
        formula = f"{tokens} tokens x {shape.num_hidden_layers} layers x {per_layer} values x {width} bytes"
    whole_base = config.quantisation.type == "none"
    width_of_base = 4.0 if whole_base else FOUR_BIT[config.quantisation.double]
    return {
        "base" if whole_base else "4-bit base": (
            packed * width_of_base,
            f"{packed:,} weights x {width_of_base:.3f} bytes",
        ),
        "embeddings, norms": (whole * 4.0, f"{whole:,} weights x 4 bytes"),
        "adapter": (adapter * 4.0, f"{adapter:,} weights x 4 bytes"),
        "gradients": (adapter * 4.0, f"{adapter:,} x 4 bytes"),
        "optimiser": (adapter * 8.0, f"{adapter:,} x 8 bytes (AdamW's two moments)"),
        "activations": (float(tokens * kept * width), formula),
        "one expanded weight": (float(max(linear) * width), f"{max(linear):,} x {width} bytes"),
    }


def tables(plan: FitPlan, config: Config) -> list[Table]:
    """The plan as rich tables."""
    facts = Table(title=f"{config.path}: {config.base.model}", show_header=False, title_justify="left")
    training = config.training
    epochs = plan.steps / plan.steps_per_epoch
    effective = training.batch_size * training.gradient_accumulation
    approximately = "" if plan.supervised_per_epoch is not None else "about "
    note = (
        f", {plan.supervised_per_epoch:,} learned"
        if plan.supervised_per_epoch is not None
        else " (the base is not here: estimated)"
    )
    facts.add_row("trainable", f"{plan.trainable:,} of {plan.total:,} ({plan.percent:.2f} %)")
    facts.add_row(
        "steps",
        f"{plan.steps} over {epochs:.3g} epochs of {plan.rows} rows, {effective} rows a step",
    )
    facts.add_row(
        "tokens an epoch", f"{approximately}{plan.tokens_per_epoch:,}{note}; longest row {plan.longest:,}"
    )
    if plan.folded:
        facts.add_row("instructions", "in the user's turn: the base's chat template has no system turn")
    memory = Table(title="memory, estimated", title_justify="left")
    memory.add_column("part")
    memory.add_column("GiB", justify="right")
    memory.add_column("how")
    for part, (size, formula) in plan.memory.items():
        memory.add_row(part, f"{size / GIB:.3f}", formula)
    memory.add_section()
    memory.add_row(
        "all",
        f"{sum(size for size, _ in plan.memory.values()) / GIB:.3f}",
        "without the CUDA context, about 0.5 GiB",
    )
    return [facts, memory]


def _estimate(row: Row, contract: Contract) -> int:
    text = contract.system_prompt + row.request + contract.serialise(dict(row.answer))
    return math.ceil(len(text) / BYTES_PER_TOKEN) + 16  # and the template's own tokens
