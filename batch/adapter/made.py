"""Base models that are made from others: written once into `bases/`, whole or not at all."""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from batch.errors import FULL, AdapterError
from batch.storage.location import refused_or_failed


def bases_root(registry: Path | None = None) -> Path:
    """`bases/` beside the registry of adapters; `$BATCH_ROUTE_BASES` moves it."""
    if root := os.environ.get("BATCH_ROUTE_BASES"):
        return Path(root)
    return (
        registry or Path(os.environ.get("BATCH_ROUTE_ADAPTERS") or "adapters")
    ).absolute().parent / "bases"


def make(home: Path, write: Callable[[Path], None]) -> Path:
    """`home`, which `write` fills under another name first. Raises `InputError` where no folder can be there,
    `StorageError` where the disk is full or fails, and what `write` raises.
    """
    if home.exists():
        return home
    staging = home.with_name(f".{home.name}.{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        write(staging)
        try:
            staging.rename(home)
        except OSError:
            if not home.exists():  # otherwise another process was first, with the same bytes
                raise
    except OSError as error:
        remedy = "name another folder with BATCH_ROUTE_BASES"
        raise refused_or_failed(f"cannot write {home}", error, remedy) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return home


def in_a_process(module: str, source: Path, *arguments: str) -> None:
    """Run a module of `batch.engine`, which loads torch, in a process that ends before an engine starts.

    Raises `AdapterError` where it cannot read `source`, `OSError` where the disk is full.
    """
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # the child starts in any folder, and asks no hub
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    line = [sys.executable, "-m", module, str(source), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    if done.returncode:
        for full in FULL:
            if os.strerror(full) in done.stderr:  # safetensors and Python agree on these words only
                raise OSError(full, os.strerror(full))
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise AdapterError(f"{source}: the base model cannot be read: {why}; copy it again")
