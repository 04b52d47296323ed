"""`fit`: a recipe's inputs → a sealed adapter bundle in the registry.

    inputs, checked → train (or resume) → write the bundle → calibrate its scores → register

Training reads the token ids that serving will send (`batch.adapter.renderer.Renderer`), learns the answer and
its end of turn only, and never cuts a row. A run that was interrupted is found again by the fingerprint of
everything that decides its result, and goes on from its last checkpoint to the same adapter.
"""

import datetime
import gc
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl.trainer.utils
from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from transformers import AutoTokenizer, EarlyStoppingCallback, PrinterCallback
from trl import SFTConfig, SFTTrainer

from batch.adapter.base_model import local_folder
from batch.adapter.bundle import BASE_FOLDER, Bundle, seal_bundle
from batch.adapter.registry import Registry
from batch.engine.patches import patch
from batch.errors import AdapterError, ConfigError
from batch.reporting.console import PlainConsole
from train.examples import count_tokens, encode
from train.files import write_json
from train.fit.calibrate import raw
from train.fit.calibrated import calibrate_folder, summary
from train.fit.card import model_card
from train.fit.checkpoints import failures, last_checkpoint
from train.fit.inputs import Inputs
from train.fit.loss_chart import draw_loss
from train.fit.model import compute_dtype, count_parameters, load_quantised, save_adapter
from train.fit.packing import Collator
from train.fit.progress import TrainingProgress, phase
from train.fit.runs import finished, note_finished, run_folder
from train.fit.serving import choose_served_base


def fit(
    inputs: Inputs,
    registry: Registry | None = None,
    console: Console | None = None,
    examine: Callable[[Bundle], bool] | None = None,
) -> Bundle:
    """Train, seal and register an adapter; alias `latest`, and `champion` where there is none yet.

    One that `examine` does not find sound raises `AdapterError` when it has become `latest`, and is not made
    the champion.

    Raises `ConfigError` and `AdapterError` (2), `OutputLockedError` (4).
    """
    registry = registry or Registry()
    console = console or PlainConsole(stderr=True)
    if inputs.renderer.style.folded:
        console.print("the base's chat template has no system turn: the instructions go into the user's")
    with run_folder(registry, inputs.fingerprint) as run:
        bundle = finished(run, registry, console) or _made(inputs, run, registry, console)
        registry.set_alias("latest", bundle.digest)
        # the run is kept until then: it may be cut off here too, and what fails is examined again
        if examine and not examine(bundle):
            raise AdapterError(
                f"adapter {bundle.digest[:12]} fails the doctor's checks; it is kept as `latest` and not "
                "made the champion"
            )
    with registry.locked():
        if not _has_champion(registry):
            registry.set_alias("champion", bundle.digest)
    return bundle


def _made(inputs: Inputs, run: Path, registry: Registry, console: Console) -> Bundle:
    """Trained, sealed, calibrated and registered, which `run` notes."""
    with phase(console, f"training on {len(inputs.splits['train'])} rows"):
        trainer = train(inputs, run, console)
    folder = registry.staging()
    try:
        with failures(inputs.config.path, run):
            write_bundle(inputs, trainer, folder)
        del trainer  # on a GPU the engine needs its memory
        gc.collect()
        torch.cuda.empty_cache()
        _calibrate(inputs, folder, console)
        bundle = registry.add(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    note_finished(run, bundle)
    return bundle


def _calibrate(inputs: Inputs, folder: Path, console: Console) -> None:
    """Choose the base that serves the sealed bundle in `folder`, and fit its scores on that."""
    split = "calibration" if "calibration" in inputs.splits else "validation"
    rows, config = inputs.splits[split], inputs.config
    choose_served_base(folder, inputs.base, config.quantisation, rows, console)
    with phase(console, f"calibrating the scores on {len(rows)} rows"):
        target = config.calibration.target_error
        calibration = calibrate_folder(folder, rows, inputs.facts["data"][split], target)
    for line in summary(calibration):
        console.print(line, highlight=False, soft_wrap=True)


def _has_champion(registry: Registry) -> bool:
    """An alias whose adapter's folder is gone names none."""
    digest = registry.aliases().get("champion")
    return digest is not None and (registry.root / digest).is_dir()


def train(inputs: Inputs, run: Path, console: Console) -> SFTTrainer:
    """Train to the end, from the last checkpoint in `run` if there is one, and load the best adapter."""
    quiet()
    trainer = build_trainer(inputs, run, console)
    with failures(inputs.config.path, run):
        checkpoint = last_checkpoint(run, console)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.best_metric is None or not math.isfinite(trainer.state.best_metric):
        shutil.rmtree(run)  # its checkpoints hold no adapter worth resuming from
        raise ConfigError(
            f"{inputs.config.path}: training diverged, no loss is finite; lower [training] learning_rate"
        )
    return trainer


def build_trainer(inputs: Inputs, run: Path, console: Console) -> SFTTrainer:
    """TRL's trainer on the project's own ids and labels, checkpointing into `run`."""
    training, renderer = inputs.config.training, inputs.renderer
    # On a GPU TRL computes logits for the learned tokens only; on a CPU for all, twelve times as many, unless
    # it takes it for one.
    patch(trl.trainer.utils, "_use_triton", lambda device: True, made_for="1.16")
    transformers.set_seed(training.seed)  # before the adapter's random start
    model = load_quantised(inputs.base, inputs.config)
    patience = training.early_stopping_patience
    trainer = _Trainer(
        model=model,
        args=_arguments(inputs, run),
        train_dataset=Dataset.from_list(encode(inputs.splits["train"], renderer)),
        eval_dataset=Dataset.from_list(encode(inputs.splits["validation"], renderer)),
        data_collator=Collator(model.config.get_text_config(), renderer.pad_id),
        processing_class=AutoTokenizer.from_pretrained(inputs.base, local_files_only=True),
        callbacks=[TrainingProgress(console), *([EarlyStoppingCallback(patience)] if patience else [])],
    )
    trainer.remove_callback(PrinterCallback)
    # TRL casts the adapter of a 4-bit base to bfloat16, in which a step of 2e-4 on a weight of 0.05 rounds to
    # nothing.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


class _Trainer(SFTTrainer):  # type: ignore[misc]
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        for metrics in self._metrics.values():
            # TRL adds up the mask, which has a number for each pair of tokens
            metrics.pop("num_tokens", None)
        return loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card in each checkpoint: the bundle has its own."""


def _arguments(inputs: Inputs, run: Path) -> SFTConfig:
    training = inputs.config.training
    if "tensorboard" in training.report_to:  # beside the run folder, which goes when the run is done
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.parent.parent / ".logs" / run.name))
    arguments = SFTConfig(
        output_dir=str(run),
        run_name=f"{inputs.contract.name}-{run.name[:8]}",
        num_train_epochs=training.epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=training.warmup,  # below 1 it is a share of all steps
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch",
        max_length=None,  # never cut; `encode` has checked the lengths
        bf16=torch.cuda.is_available() and compute_dtype(inputs.config.quantisation) == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=training.seed,
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=training.eval_every,
        save_strategy="steps",
        save_steps=training.eval_every,
        save_total_limit=1,  # the last, and the best beside it
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,  # early stopping goes on counting where it was
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
    )
    # The model is on one GPU (`load_base`). `Trainer` would put a copy on each other, which TRL refuses.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def write_bundle(inputs: Inputs, trainer: SFTTrainer, folder: Path) -> Path:
    """Everything that a bundle holds, into `folder`, the manifest last.

    Times are in the manifest alone, which the digest does not cover: the same run gives the same digest.
    """
    metrics = measure(inputs, trainer)
    save_adapter(_peft(trainer), folder)
    (folder / "contract.json").write_text(inputs.contract.to_json(), encoding="utf-8")
    inputs.renderer.save(inputs.base, folder)
    write_json(folder / "metrics.json", metrics)
    calibration = raw("scores are the model's own probabilities")
    write_json(folder / "calibration.json", calibration)
    draw_loss(metrics["history"], folder, title=f"{inputs.contract.name} on {inputs.config.base.model}")
    (folder / "card.md").write_text(
        model_card(inputs.contract, inputs.facts, metrics, calibration), encoding="utf-8"
    )
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    local = local_folder(inputs.config.base.model, near=inputs.config.path)
    where = {BASE_FOLDER: str(local.resolve())} if local else {}
    seal_bundle(folder, {**inputs.facts, **where, "created_at": created})
    return folder


def measure(inputs: Inputs, trainer: SFTTrainer) -> dict[str, Any]:
    """`metrics.json`: parameter counts, tokens, the best step, and the losses step by step (nats per answer
    token).
    """
    state = trainer.state
    return {
        "parameters": count_parameters(_peft(trainer)),
        "tokens": count_tokens(list(trainer.train_dataset)),  # what the trainer has, not what it was given
        "steps": state.global_step,
        "epochs": state.epoch,
        "best": {"step": state.best_global_step, "validation_loss": state.best_metric},
        "history": history_of(state.log_history),
    }


def history_of(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The trainer's log, step by step; a step that overflowed has no loss, for JSON has no NaN."""
    history = []
    for entry in log:
        if "loss" in entry:
            names = {
                "loss": "loss",
                "mean_token_accuracy": "token_accuracy",
                "learning_rate": "learning_rate",
            }
        elif "eval_loss" in entry:
            names = {"eval_loss": "validation_loss", "eval_mean_token_accuracy": "validation_token_accuracy"}
        else:
            continue  # the summary at the end, which holds times
        finite = {new: entry[old] for old, new in names.items() if math.isfinite(entry.get(old, math.nan))}
        history.append({"step": entry["step"], **finite})
    return history


def quiet() -> None:
    """Warnings of the libraries stay; their chatter and their bars go."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _peft(trainer: SFTTrainer) -> PeftModel:
    model = trainer.model
    if not isinstance(model, PeftModel):
        raise TypeError(f"expected a PEFT model, not {type(model).__name__}")
    return model
