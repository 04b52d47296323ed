"""How far a fit is: a bar on a terminal, a line for each validation, and each phase with its time."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from batch.reporting.progress import Times, clock


@contextlib.contextmanager
def phase(console: Console, name: str) -> Iterator[None]:
    """Say what begins, and how long it took once it is done."""
    console.print(name, highlight=False)
    began = time.monotonic()
    yield
    console.print(f"{name}: {clock(time.monotonic() - began)}", highlight=False)


class TrainingProgress(TrainerCallback):  # type: ignore[misc]
    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Times())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.loss = float("nan")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            self.console.print(f"resuming after step {state.global_step} of {state.max_steps}")
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step)
        self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        self.loss = logs.get("loss", self.loss)
        if "eval_loss" in logs:
            losses = f"train loss {self.loss:.4f}   validation loss {logs['eval_loss']:.4f}"
            self.console.print(
                f"step {state.global_step:>4} of {state.max_steps}   {losses}", highlight=False
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.stop()
