"""`import`: a plain PEFT folder, trained by other means, becomes a bundle of the registry.

    check weights and base → seal with contract and tokenizer → have the engine answer → compare with PEFT

What cannot be served as it was trained is refused before an engine starts, with the reason.
"""

import datetime
import os
import re
import shutil
from pathlib import Path

from batch.adapter.base_model import base_digest, local_folder, resolve_base
from batch.adapter.bundle import BASE_FOLDER, Bundle, seal_bundle
from batch.adapter.files import read_json
from batch.adapter.fits import check_fits
from batch.adapter.peft_checks import highest_rank, lint
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.engine.supervisor import Supervisor
from batch.errors import AdapterError
from batch.scoring.adapters import engine_spec, spec_of
from train.doctor.proof import REQUESTS, ServingProof, prove
from train.doctor.served import answers
from train.files import write_json
from train.fit.base_checks import checked_renderer
from train.fit.calibrate import raw
from train.fit.shape import check_weights

WEIGHTS = ("adapter_model.safetensors", "adapter_config.json")


def import_folder(
    folder: Path, contract: Contract, base_ref: str, revision: str | None, registry: Registry
) -> Bundle:
    """A registered bundle of the adapter in `folder`. Raises `AdapterError` for what cannot be served."""
    if os.path.exists(folder / "adapter_model.bin") and not os.path.exists(folder / WEIGHTS[0]):
        raise AdapterError(
            f"{folder}: adapter_model.bin is a pickle, which is never loaded; save safetensors"
        )
    modules = lint(folder)
    base = resolve_base(base_ref, revision)
    renderer = checked_renderer(base, contract)
    check_weights(base)
    check_fits(folder, modules, base)
    config = read_json(folder / "adapter_config.json", "a PEFT adapter")
    said = {key: config.get(key) for key in ("base_model_name_or_path", "revision")}
    staging = registry.staging()
    try:
        for name in WEIGHTS:
            shutil.copyfile(folder / name, staging / name)
        renderer.save(base, staging)
        (staging / "contract.json").write_text(contract.to_json(), encoding="utf-8")
        write_json(staging / "metrics.json", {})
        write_json(staging / "calibration.json", raw("imported; scores are the model's own probabilities"))
        facts = {
            "base": {"ref": base_ref, "revision": revision, "sha256": base_digest(base)},
            "renderer_fingerprint": renderer.fingerprint,
            "contract_fingerprint": contract.fingerprint,
            "rank": highest_rank(folder, modules),
            "recipe": {"quantisation": {"type": "none"}},  # what is known of its training
            "imported": said,
            "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        if local := local_folder(base_ref):
            facts[BASE_FOLDER] = str(local.resolve())
        seal_bundle(staging, facts)
        return registry.add(staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def another_base(bundle: Bundle) -> str | None:
    """A warning where the adapter's own config names another base than it was imported with: one of the same
    shapes fits, and the answers on it are those of PEFT on it.
    """
    said, base = bundle.manifest["imported"], bundle.base
    name, revision = (str(said[key] or "") for key in ("base_model_name_or_path", "revision"))
    given = f"{base['ref']} at revision {base['revision']}" if base["revision"] else str(base["ref"])
    other = revision and base["revision"] and revision != base["revision"]
    if not name or (_name(name).casefold() == _name(base["ref"]).casefold() and not other):
        return None
    trained = f"{name} at revision {revision}" if revision else name
    return (
        f"the adapter says that it was trained on {trained}, not on {given}; make sure that they are the same"
    )


def _name(ref: str) -> str:
    """The last part of a hub id or a path, also of a path into the hub's cache."""
    cached = re.search(r"models--[^/]+--([^/]+)/snapshots/", ref)
    return cached[1] if cached else Path(ref).name


def proved(bundle: Bundle, base_ref: str) -> ServingProof:
    """Have the engine load the bundle and answer a few requests. Raises `AdapterError` where PEFT differs."""
    base = bundle.resolve_base(base_ref)
    adapter = spec_of(bundle)
    with Supervisor(engine_spec(base, [bundle])) as engine:
        engine.load(adapter)
        completions = answers(engine, adapter.name, bundle.renderer.encode_requests(REQUESTS))
    proof = prove(bundle, base, REQUESTS, completions)
    if not proof.holds:
        raise AdapterError(
            f"adapter {bundle.digest[:12]} is not served as PEFT reads it: {proof}; it stays in the "
            "registry without an "
            "alias, remove it or report this"
        )
    return proof
