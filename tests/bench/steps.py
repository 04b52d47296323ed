"""Processor time of the engine's thread around the model, by part: `python -m tests.bench.steps --at-once 512`.

A base of one layer with Qwen's vocabulary (`geometry.py`), so that all but the model costs what it costs with a real one. On a
GPU the model's own time is the GPU's; the rest has to fit beside it. Without drafts, as a GPU is served. Prints
milliseconds a step, at full load, and writes steps.json.
"""

import json
import random
import tempfile
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import click

from batch.scoring.adapters import engine_spec, spec_of
from tests.bench import geometry
from train.mini_base.requests import requests

MODEL = ("execute_model", "sample_tokens")  # on a GPU, mostly launches; here also the work itself


class Clock:
    """Processor time of this thread in each part, without that of the parts inside."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._inside = 0.0

    def watch(self, owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            outside, self._inside, began = self._inside, 0.0, time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                took = time.thread_time() - began
                self.spent[name] += took - self._inside
                self._inside = outside + took

        setattr(owner, name, timed)


def measure(
    engine: Any, adapter: str, asked: Any, at_once: int, steps: int, clock: Clock
) -> dict[str, float]:
    """Milliseconds a step of each part, over `steps` steps under full load, after one answer's length of them."""
    done = counted = 0
    for step in range(-60, steps):
        if step == 0:
            clock.spent.clear()
            done = 0
        while engine.in_flight < 1.5 * at_once:
            engine.add(adapter, *next(asked))
        done += len(engine.step())
        counted = step + 1
    told = {name: 1e3 * seconds / counted for name, seconds in clock.spent.items()}
    around = sum(value for name, value in told.items() if name not in MODEL)
    return {**told, "around the model": around, "rows a step": done / counted}


@click.command()
@click.option("--at-once", default=512, show_default=True)
@click.option("--steps", default=60, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("steps.json"), show_default=True)
def main(at_once: int, steps: int, out: Path) -> None:
    from batch.engine.vllm import VllmEngine

    with tempfile.TemporaryDirectory() as folder:
        bundle = geometry.build("one-layer", Path(folder))
        spec = engine_spec(Path(folder) / "base", [bundle], max_num_seqs=at_once, draft_tokens=0)
        engine, clock, adapter = VllmEngine(spec), Clock(), spec_of(bundle)
        engine.load(adapter)
        vllm = engine._engine
        core = vllm.engine_core.engine_core  # type: ignore[attr-defined]
        for name in ("schedule", "update_from_output", "get_grammar_bitmask"):
            clock.watch(core.scheduler, name)
        for name in MODEL:
            clock.watch(core.model_executor, name)
        clock.watch(vllm.output_processor, "process_outputs")
        clock.watch(vllm, "add_request")
        clock.watch(engine, "_completion")
        clock.watch(engine, "add")
        clock.watch(engine, "step")
        texts = dict.fromkeys(request.text for request in islice(requests(random.Random(0)), 40 * at_once))
        asked = iter(enumerate(bundle.renderer.encode_requests(list(texts))))
        told = measure(engine, adapter.name, asked, at_once, steps, clock)
    out.write_text(json.dumps(told, indent=2))
    for name, value in sorted(told.items(), key=lambda item: -item[1]):
        click.echo(f"{name:20} {value:8.2f}" + (" ms a step" if name != "rows a step" else ""))


if __name__ == "__main__":
    main()
