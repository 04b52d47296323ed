"""A run that was cut off goes on from its newest whole checkpoint; a full disk is one line and exit code 75."""

import errno
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow.exceptions import MlflowException
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file

from batch.errors import ConfigError, EngineError, StorageError
from train.fit.checkpoints import failures, last_checkpoint


def checkpoint(run: Path, step: int, best: int) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(200)}, folder / name)
    save_file({"a": torch.ones(20, 20)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    state = {"global_step": step, "best_model_checkpoint": f"/elsewhere/checkpoint-{best}"}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


def flip(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (folder / name).write_bytes(content)

    return change


FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors", "trainer_state.json"]


@pytest.mark.parametrize(
    "damage",
    [
        *(cut(name) for name in FILES),
        *(flip(name) for name in FILES[:2]),
        *((lambda folder, name=name: (folder / name).unlink()) for name in [*FILES, "adapter_config.json"]),
        *((lambda folder, name=name: (folder / name).write_bytes(b"")) for name in FILES),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    before, last = checkpoint(tmp_path, 20, 20), checkpoint(tmp_path, 100, 20)
    console = Console(file=io.StringIO(), width=400)
    assert last_checkpoint(tmp_path, console) == last and not console.file.getvalue()  # type: ignore[attr-defined]
    damage(last)
    assert last_checkpoint(tmp_path, console) == before and not last.exists()
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "checkpoint-100 is damaged" in said
        and "going on from checkpoint-20" in said
        and said.count("\n") == 1
    )


def test_where_the_best_is_damaged_the_last_is_of_no_use(tmp_path: Path) -> None:
    best = checkpoint(tmp_path, 20, 20)
    checkpoint(tmp_path, 40, 20)
    cut("adapter_model.safetensors")(best)
    assert last_checkpoint(tmp_path, Console(file=io.StringIO())) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            StorageError,
        ),
        (OSError(errno.EFBIG, "File too large"), StorageError),
        (SafetensorError("header too large"), EngineError),
        (RuntimeError("shape mismatch\nin two lines"), EngineError),
        (torch.OutOfMemoryError("CUDA out of memory"), ConfigError),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), EngineError),
        (MemoryError(), EngineError),
        (ConnectionError("the tracker's server does not answer"), EngineError),
        (TypeError("forward() got an unexpected keyword argument"), ConfigError),
        (ValueError("a batch of no rows"), ConfigError),
        (NotImplementedError("no kernel for this dtype"), ConfigError),
        (PermissionError(errno.EACCES, "Permission denied"), ConfigError),
        (MlflowException("no experiment of this name"), ConfigError),
    ],
)
def test_no_error_of_a_library_gets_out(tmp_path: Path, error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as told, failures(Path("recipe.toml"), tmp_path):
        raise error
    assert "\n" not in str(told.value) and ("run again" in str(told.value)) == (kind is not ConfigError)


def test_a_tracker_whose_server_does_not_answer_may_answer_a_rerun(tmp_path: Path) -> None:
    """Its error has no number, and stands for one of the network."""
    with pytest.raises(EngineError, match="run again"), failures(Path("recipe.toml"), tmp_path):
        try:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        except OSError as error:
            raise MlflowException(f"API request failed: {error}") from None
