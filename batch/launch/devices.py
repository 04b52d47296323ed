"""The devices of this machine: which of them a run uses, and how their engines keep apart."""

import contextlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from batch.errors import InputError

FIRST_PORT, PORTS = 29_600, 50  # an engine looks for free ports from its own first one on


def placements(wanted: str | None, threads: int | None, span: int = 1) -> list[dict[str, Any]]:
    """For each engine what its spec has of its own: `threads`, how many devices it spans (`tensor_parallel`),
    and the `environment` that shows it these.

    `wanted` is `all`, a number of devices or their numbers (`0,1`); None is every GPU, or one engine where
    there is none. A GPU named twice (`0,0`) has two engines, which share its memory (`sharing`); with a 4 B
    base on an H200 they were slower than one. Without a GPU, several engines share the cores, as do the
    `span` parts of one. Raises `InputError`.
    """
    gpus = visible_gpus()
    if not gpus:
        cores = sorted(os.sched_getaffinity(0))
        count = _count(wanted, len(cores) // span, "cores") if span <= len(cores) else 0
        if not count:
            raise InputError(f"--tensor-parallel {span}: this machine has {len(cores)} cores and no GPU")
        if span > 1:
            return _apart(_bound(cores, count, span), threads, span)
        return _apart([{}] * count, threads or _share(count))
    if wanted is not None and "," in wanted:
        chosen = [part.strip() for part in wanted.split(",") if part.strip()]
        unknown = [
            part for part in chosen if not (part.isascii() and part.isdigit()) or int(part) >= len(gpus)
        ]
        if unknown:
            what = f"has no GPU {unknown[0]}; this machine has 0 to {len(gpus) - 1}"
            raise InputError(f"--devices {wanted} {what}")
        gpus = [gpus[int(part)] for part in chosen]
        if span > 1 and len(set(gpus)) < len(gpus):
            raise InputError(f"--devices {wanted} names a GPU twice, which --tensor-parallel cannot span")
    elif wanted not in (None, "all"):
        gpus = gpus[: _count(wanted, len(gpus), "GPUs")]
    if len(gpus) % span:
        raise InputError(
            f"--tensor-parallel {span} does not divide {len(gpus)} GPUs; choose as many with --devices"
        )
    groups = [gpus[start : start + span] for start in range(0, len(gpus), span)]
    # `nvidia-smi` numbers them as they sit on the bus, CUDA the fastest first unless told. Numbers that were
    # given mean what they mean to CUDA.
    order = {} if "CUDA_VISIBLE_DEVICES" in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    shown = [{"CUDA_VISIBLE_DEVICES": ",".join(group), **order} for group in groups]
    return _apart(shown, threads, span)


def visible_gpus() -> list[str]:
    """The names by which CUDA knows the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [part.strip() for part in given.split(",") if part.strip() not in ("", "-1")]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
        return _listed(listed.stdout)
    return []


def _listed(text: str) -> list[str]:
    """What `nvidia-smi -L` lists: each GPU by its number, or each part of one that is divided (MIG) by its
    UUID.

        GPU 0: NVIDIA H100 (UUID: GPU-6f…)
          MIG 3g.40gb     Device  0: (UUID: MIG-0c…)
    """
    found: list[str] = []
    for line in text.splitlines():
        if gpu := re.match(r"GPU (\d+):", line):
            found.append(gpu[1])
        elif part := re.match(r"\s+MIG .*\(UUID: ([^)]+)\)", line):
            if found and found[-1].isdigit():
                found.pop()
            found.append(part[1])
    return found


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


def _bound(cores: list[int], count: int, span: int) -> list[dict[str, str]]:
    """An engine's parts are processes: vLLM binds each to cores of its own, and has to be told which."""
    size = len(cores) // (count * span)
    lists = [",".join(map(str, cores[start : start + size])) for start in range(0, len(cores), size)]
    return [
        {"VLLM_CPU_OMP_THREADS_BIND": "|".join(lists[engine * span : (engine + 1) * span])}
        for engine in range(count)
    ]


def _apart(environments: list[dict[str, str]], threads: int | None, span: int = 1) -> list[dict[str, Any]]:
    """Engines that start together must not race for ports, nor write one compiled graph at a time. Those on
    one GPU start one after another, and the later ones read what the first has compiled.
    """
    gpus = [
        environment.get("CUDA_VISIBLE_DEVICES", str(index)) for index, environment in enumerate(environments)
    ]
    if len(environments) > 1:
        root = Path(os.environ.get("VLLM_CACHE_ROOT") or Path.home() / ".cache/vllm")
        environments = [
            {
                **environment,
                "VLLM_PORT": str(FIRST_PORT + PORTS * index),
                "VLLM_CACHE_ROOT": str(root / f"device-{gpus.index(gpu)}"),
            }
            for index, (gpu, environment) in enumerate(zip(gpus, environments, strict=True))
        ]
    return [
        {
            "threads": threads,
            "tensor_parallel": span,
            "sharing": gpus.count(gpu),
            "environment": tuple(environment.items()),
        }
        for gpu, environment in zip(gpus, environments, strict=True)
    ]
