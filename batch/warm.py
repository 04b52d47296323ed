"""Engines that outlive a run, for the files of a watch."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from batch.engine import EngineSpec
from batch.engine.supervisor import Supervisor
from batch.job import Job
from batch.run import start_engines, wanted_engines


class WarmEngines:
    """Engines that stay from file to file; others take their place only for a job that they cannot serve."""

    def __init__(self) -> None:
        self._started = contextlib.ExitStack()
        self._engines: Sequence[Supervisor] = ()
        self._specs: Sequence[EngineSpec] = ()

    @contextlib.contextmanager
    def __call__(self, job: Job) -> Iterator[Sequence[Supervisor]]:
        wanted = wanted_engines(job)
        if len(self._specs) != len(wanted) or not all(map(serves, self._specs, wanted)):
            self.close()
            self._engines, self._specs = self._started.enter_context(start_engines(job)), wanted
        try:
            yield self._engines
        except BaseException:
            self.close()  # what still runs in them is nobody's any more
            raise

    def close(self) -> None:
        self._engines = self._specs = ()
        self._started.close()


def serves(running: EngineSpec, wanted: EngineSpec) -> bool:
    """Whether a running engine can take the adapters that `wanted` was made for."""
    modules = running.lora_modules is None or (
        wanted.lora_modules is not None and set(wanted.lora_modules) <= set(running.lora_modules)
    )
    fits = ("max_model_len", "max_lora_rank", "max_loras")
    same = {name: getattr(running, name) for name in (*fits, "tokenizer", "lora_modules")}
    return (
        modules
        and all(getattr(wanted, name) <= getattr(running, name) for name in fits)
        and (wanted.tokenizer == running.tokenizer or _vocabulary(wanted) == _vocabulary(running))
        and dataclasses.replace(wanted, **same) == running
    )


def _vocabulary(spec: EngineSpec) -> bytes:
    return (Path(spec.tokenizer) / "tokenizer.json").read_bytes()
