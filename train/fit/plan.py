"""`plan`: what a recipe will train, in how many steps and how much memory; loads and downloads no model."""

import dataclasses
import math
from pathlib import Path

from rich.table import Table

from batch.adapter.base_model import local_folder, resolve_base
from batch.contract.contract import Contract
from batch.errors import AdapterError, ConfigError
from batch.imports import uncollected
from train.config import Config, Training
from train.dataset import Row
from train.examples import count_tokens, encode
from train.fit.base_checks import checked_renderer
from train.fit.inputs import load_splits

GIB = 1 << 30
BYTES_PER_TOKEN = 4  # of English under a large vocabulary, where no tokenizer is here to count


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
    renderer = checked_renderer(base, contract) if base else None
    rows = load_splits(config, contract, renderer)["train"]
    if base:
        with uncollected():
            from train.fit.shape import check_weights  # torch, after all that can be refused without it

        check_weights(base)
    with uncollected():
        from train.fit.memory import estimate_memory  # PEFT and bitsandbytes, to count
        from train.fit.model import count_parameters, on_meta

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
