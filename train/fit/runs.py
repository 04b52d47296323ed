"""A run's folder: its checkpoints, then the digest of the adapter that it made, until that is checked; and
the adapters of runs that are done.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rich.console import Console

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.json_text import as_json
from batch.errors import AdapterError, OutputLockedError
from batch.storage.location import write_file
from train.fit.inputs import Inputs

DIGEST = "adapter"  # the file's name


def run_folder(registry: Registry, fingerprint: str) -> AbstractContextManager[Path]:
    return held(_folder(registry, fingerprint))


@contextmanager
def held(folder: Path) -> Iterator[Path]:
    """The folder of a recipe's work, held by this process, and removed once the work is done; what cannot be
    removed is left: the work is worth more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)  # a lock file in it would be in the way of its removal over NFS
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OutputLockedError(
            f"another process is training the same recipe in {folder}; wait for it"
        ) from None
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def unchecked(registry: Registry, fingerprint: str) -> bool:
    """Whether a run has made an adapter that was not checked to the end, or failed."""
    return (_folder(registry, fingerprint) / DIGEST).exists()


def already_fitted(registry: Registry, inputs: Inputs) -> Bundle | None:
    """The adapter that a run has made of these very inputs and checked to the end, if it is there and whole.

    A calibrated copy is of the same inputs: the champion is taken before `latest`, and that before others.
    """
    if unchecked(registry, inputs.fingerprint):
        return None
    wanted = as_json(inputs.facts)
    made = [b for b in registry.list() if all(b.manifest.get(key) == value for key, value in wanted.items())]
    aliases = registry.aliases()
    named = [aliases.get(name) for name in ("champion", "latest")]
    return min(made, key=lambda b: [b.digest != digest for digest in named], default=None)


def _folder(registry: Registry, fingerprint: str) -> Path:
    return registry.root / ".runs" / fingerprint[:16]


def note_finished(run: Path, bundle: Bundle) -> None:
    """What is left to do is to check it, which needs no checkpoint."""
    write_file(run / DIGEST, bundle.digest.encode())
    for path in run.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def finished(run: Path, registry: Registry, console: Console) -> Bundle | None:
    """The adapter of a run that was cut off only afterwards, if it is still there and whole."""
    try:
        bundle = registry.open((run / DIGEST).read_text(encoding="ascii"), entries_only=True)
    except (FileNotFoundError, ValueError, AdapterError):
        return None
    console.print(f"adapter {bundle.digest[:12]} is trained already; resuming after it", highlight=False)
    return bundle
