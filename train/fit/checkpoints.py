"""Checkpoints of a run that was cut off: the newest whole one, and a disk that fills up."""

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from batch.adapter.files import largest_values, read_json, read_tensors
from batch.errors import FULL, LASTING, PASSING, AdapterError, BatchRouteError, ConfigError, EngineError
from batch.storage.location import reason, storage_error
from train.config import TRACKERS

STATE = "trainer_state.json"  # written last
# torch's own: zip files with a checksum for each part
ARCHIVES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
WEIGHTS = "adapter_model.safetensors"
# of code or settings; RuntimeError is torch's for a lost device too
FAULTS = (TypeError, ValueError, LookupError, AttributeError, NotImplementedError)


def last_checkpoint(run: Path, console: Console) -> Path | None:
    """The newest whole checkpoint in `run`. Later ones, which a kill or a full disk left damaged, are
    removed.
    """
    found = sorted(run.glob("checkpoint-*"), key=_step, reverse=True)
    for index, checkpoint in enumerate(found):
        try:
            _check(checkpoint)
            return checkpoint
        except (AdapterError, OSError, ValueError, zipfile.BadZipFile) as error:
            before = found[index + 1].name if index + 1 < len(found) else "the beginning"
            console.print(
                f"{checkpoint.name} is damaged ({reason(error)}); going on from {before}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            shutil.rmtree(checkpoint)
    return None


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _check(checkpoint: Path) -> None:
    """Raises where a file is missing or damaged; of the best checkpoint, which is loaded at the end, too."""
    state = read_json(checkpoint / STATE, "a checkpoint")
    for name in ARCHIVES:
        with zipfile.ZipFile(checkpoint / name) as archive:
            if broken := archive.testzip():
                raise ValueError(f"{name}: {broken} differs from its checksum")
    best = state.get("best_model_checkpoint")
    homes = {checkpoint} | ({checkpoint.parent / Path(str(best)).name} if best else set())
    for home in homes:
        read_json(home / "adapter_config.json", "a checkpoint")
        largest_values(home / WEIGHTS, read_tensors(home / WEIGHTS))


@contextmanager
def failures(recipe: Path, run: Path) -> Iterator[None]:
    """Errors of torch, safetensors and the system while a run trains, each as one line and an exit code."""
    try:
        yield
    except (BatchRouteError, ImportError):
        raise
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{recipe}: the GPU has too little memory; lower [training] batch_size, raise "
            "gradient_accumulation by as much, and set gradient_checkpointing = true"
        ) from error
    except Exception as error:
        if is_full(error, run):
            raise storage_error(str(run), OSError(28, "No space left on device")) from error
        tracker = type(error).__module__.partition(".")[0]
        told = f"{type(error).__name__}: {reason(error)}"
        if _lasts(error) and tracker in TRACKERS:
            raise ConfigError(
                f"{recipe}: {tracker} failed: {told}; set it up, or leave it out of [training] report_to"
            ) from error
        if _lasts(error):
            raise ConfigError(
                f"{recipe}: training failed: {told}; correct the recipe, or report this"
            ) from error
        raise EngineError(f"{recipe}: training failed: {told}; run again to resume") from error


def _lasts(error: BaseException | None) -> bool:
    """Whether a rerun would meet it again: code or settings are at fault, not the machine or a network."""
    lasts = isinstance(error, FAULTS) or type(error).__module__.partition(".")[0] in TRACKERS
    while error:  # a tracker's error may stand for one of the network
        if isinstance(error, OSError):
            return error.errno in LASTING - PASSING
        error = error.__cause__ or error.__context__
    return lasts


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether the disk was full: torch and safetensors say it in words of their own, or not at all."""
    said = str(error)
    if getattr(error, "errno", None) in FULL or "No space left" in said or "File too large" in said:
        return True
    return "write" in said and shutil.disk_usage(folder).free < 64 << 20
