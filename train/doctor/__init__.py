"""`doctor`: is what was trained what is served? Twelve checks on the path that serves, a line each.

read the training rows → checks on token ids → ask the engine → checks on its answers → compare with the base
that was trained on
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoConfig

from batch.adapter.bundle import Bundle
from batch.engine import AdapterSpec
from batch.engine.supervisor import Supervisor
from batch.errors import AdapterError, PositionsError
from batch.scoring.adapters import engine_spec, spec_of
from batch.scoring.router import EngineClient
from train.doctor import rows, served, skew
from train.doctor.check import NAMES, Check, judge, show
from train.doctor.grammar import ServedGrammar

__all__ = ["Check", "as_json", "doctor", "sound"]


def doctor(
    bundle: Bundle | Path,
    data: Path | None = None,
    base_model: str | None = None,
    engine: EngineClient | None = None,
    dtype: str | None = None,
) -> list[Check]:
    """The twelve checks, in order. A folder that is not a sound bundle fails the lint, a contract beyond the
    base's positions the settings, and the others are not run.

    `data` names the training rows where they are not where the manifest has them; `engine` is one that runs
    on the bundle's base, else one is started, with `dtype` or as it serves. Raises `AdapterError`,
    `DatasetError` (no rows, no base), `EngineError`.
    """
    if not isinstance(bundle, Bundle):
        try:
            bundle = Bundle.open(bundle)
        except AdapterError as error:
            return _only("adapter lint", str(error), "the bundle does not open")
    try:
        original, base = bundle.original_base(base_model), bundle.resolve_base(base_model)
    except PositionsError as error:
        return _only("decoding settings", str(error), "no row of the longest kind would fit")
    trained = rows.read(bundle, base, data)
    spec = dataclasses.replace(spec_of(bundle), strict=False)
    vocabulary = AutoConfig.from_pretrained(base, local_files_only=True).get_text_config().vocab_size
    grammar = ServedGrammar(bundle.path, bundle.contract.grammar, bundle.renderer.end_of_turn_id, vocabulary)
    found = [
        *rows.check_prompts(trained, bundle, spec),
        rows.check_nothing_cut(trained, bundle),
        rows.check_loss_mask(trained, bundle),
        rows.check_gold(trained, bundle, grammar),
        Check(
            "adapter lint",
            True,
            f"plain LoRA of rank {bundle.rank}, safetensors, every file as its digest says",
        ),
    ]
    what = _ask(bundle, base, spec, trained, engine, dtype)
    ends = [
        *rows.turn_end_problems(trained, bundle.path, bundle.renderer, spec.stop_id),
        *served.stop_problems(what),
    ]
    found += [
        judge(
            "end of turn",
            ends,
            f"{len(trained.rows)} rows teach it, the engine stops at it, the canary ends by it, free too",
        ),
        served.check_arms(what, bundle),
        served.check_grammar(what, bundle),
        served.check_acts(what),
        skew.check_skew(what, bundle, original, grammar),
        rows.check_settings(trained, bundle, spec, what.seen.get("decoding", {})),
    ]
    return sorted(found, key=lambda check: NAMES.index(check.name))


def _only(failed: str, why: str, so: str) -> list[Check]:
    """The one check that failed before the others could run."""
    return [Check(name, False, why if name == failed else f"not run: {so}") for name in NAMES]


def sound(data: Path | None, console: Console, bundle: Bundle) -> bool:
    """Print a line for each check; whether all pass."""
    console.print("checking that what was trained is what is served", highlight=False)
    checks = doctor(bundle, data)
    show(checks, console)
    return all(check.ok for check in checks)


def _ask(
    bundle: Bundle,
    base: Path,
    spec: AdapterSpec,
    trained: rows.Trained,
    engine: EngineClient | None,
    dtype: str | None,
) -> served.Served:
    if engine is not None:
        return served.serve(bundle, spec, trained.rows, engine)
    # gone before the 4-bit base loads: on a GPU both would not fit
    with Supervisor(engine_spec(base, [bundle], dtype=dtype)) as process:
        return served.serve(bundle, spec, trained.rows, process)


def as_json(checks: Sequence[Check], adapter: str) -> dict[str, Any]:
    """What `doctor --json` writes."""
    return {
        "adapter": adapter,
        "ok": all(check.ok for check in checks),
        "checks": [dataclasses.asdict(check) for check in checks],
    }
