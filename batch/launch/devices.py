"""The devices of this machine: which of them a run uses, and how their engines keep apart."""

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

from batch.errors import InputError

FIRST_PORT, PORTS = 29_600, 50  # an engine looks for free ports from its own first one on


def placements(wanted: str | None, threads: int | None) -> list[dict[str, Any]]:
    """For each engine what its spec has of its own: `threads`, and the `environment` that shows it a device.

    `wanted` is `all`, a number of devices or their numbers (`0,1`); None is every GPU, or one engine where
    there is none. Without a GPU, several engines share the cores. Raises `InputError`.
    """
    gpus = visible_gpus()
    if not gpus:
        count = _count(wanted, len(os.sched_getaffinity(0)), "cores")
        return _apart([{}] * count, threads or _share(count))
    if wanted is not None and "," in wanted:
        chosen = [part.strip() for part in wanted.split(",") if part.strip()]
        unknown = [part for part in chosen if not part.isdigit() or int(part) >= len(gpus)]
        if unknown or len(set(chosen)) < len(chosen):
            what = f"has no GPU {unknown[0]}" if unknown else "names a GPU twice"
            raise InputError(f"--devices {wanted} {what}; this machine has 0 to {len(gpus) - 1}")
        gpus = [gpus[int(part)] for part in chosen]
    elif wanted not in (None, "all"):
        gpus = gpus[: _count(wanted, len(gpus), "GPUs")]
    return _apart([{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus], threads)


def visible_gpus() -> list[str]:
    """The names by which CUDA knows the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [part.strip() for part in given.split(",") if part.strip() not in ("", "-1")]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
        return [str(number) for number, _ in enumerate(listed.stdout.splitlines())]
    return []


def _count(wanted: str | None, most: int, of: str) -> int:
    if wanted is None or wanted == "all":
        return 1
    if not (wanted.isascii() and wanted.isdigit()) or int(wanted) < 1:
        known = "give all, a number, or numbers of GPUs as in 0,1" if of == "GPUs" else "give a number"
        raise InputError(f"--devices {wanted} is not known here; {known}")
    if int(wanted) > most:
        raise InputError(f"--devices {wanted}: this machine has {most} {of}; give a smaller number")
    return int(wanted)


def _share(count: int) -> int | None:
    """Threads an engine, where several share the cores."""
    return None if count == 1 else max(1, len(os.sched_getaffinity(0)) // count)


def _apart(environments: list[dict[str, str]], threads: int | None) -> list[dict[str, Any]]:
    """Engines that start together must not race for ports, nor write one compiled graph at a time."""
    if len(environments) > 1:
        root = Path(os.environ.get("VLLM_CACHE_ROOT") or Path.home() / ".cache/vllm")
        environments = [
            {
                **environment,
                "VLLM_PORT": str(FIRST_PORT + PORTS * index),
                "VLLM_CACHE_ROOT": str(root / f"device-{index}"),
            }
            for index, environment in enumerate(environments)
        ]
    return [{"threads": threads, "environment": tuple(each.items())} for each in environments]
