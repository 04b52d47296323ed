"""The model card: what a bundle is, from the same facts as its metrics and manifest."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch.contract.contract import Contract
from batch.contract.fields import as_text


def model_card(
    contract: Contract, facts: Mapping[str, Any], metrics: Mapping[str, Any], calibration: Mapping[str, Any]
) -> str:
    """Markdown with the front matter that model hubs read; `facts` are the manifest's."""
    base, data, best = facts["base"], facts["data"], metrics["best"]
    counts, lora = metrics["parameters"], facts["recipe"]["lora"]
    share = 100 * counts["trainable"] / counts["total"]
    quantised = facts["recipe"]["quantisation"]["type"]
    method = "LoRA: base in full precision" if quantised == "none" else f"QLoRA: {quantised} base"
    served = "these 4-bit weights, expanded" if "served_base" in facts else "the base as it is"
    kept = f"step {best['step']}, validation loss {best['validation_loss']:.4f}"
    rows = "\n".join(
        f"| {name} | {split['rows']} | `{split['path']}` | `{split['sha256'][:12]}` |"
        for name, split in data.items()
    )
    fields = "\n".join(
        f"- `{f.name}`: {', '.join(map(as_text, f.values)) or 'text'}" for f in contract.fields
    )
    return f"""---
{front_matter(contract, facts, metrics)}---
# {contract.name}

A LoRA adapter that answers a request with one compact JSON object of the contract `{contract.name}`:

{fields}

It is meant for `batch-route`, which decodes under the contract's grammar and checks each answer; the contract in this
folder is the one it was trained on. It decides nothing outside that contract. Its evaluation: `batch-train eval`.

## Training

- Base: `{base["ref"]}`, revision `{base["revision"] or "none"}`, sha256 `{(base["sha256"] or "")[:12]}`
- {method}, rank {lora["r"]}, alpha {lora["alpha"]}, dropout {lora["dropout"]}, {lora["target"]}
- Served on {served}
- Trainable parameters: {counts["trainable"]:,} of {counts["total"]:,} ({share:.2f} %)
- Steps: {metrics["steps"]} over {metrics["epochs"]:.3g} epochs, seed {facts["seed"]}; kept: {kept}
- Tokens an epoch: {metrics["tokens"]["all"]:,}, of which learned (answers): {metrics["tokens"]["supervised"]:,}

| split | rows | file | sha256 |
|---|---|---|---|
{rows}

![loss](loss.png)

## Scores

{_scores(calibration)}
"""


def front_matter(contract: Contract, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The card's YAML, as model hubs read it. The base is named where it is on a hub; the licence is the
    base's, whose weights the adapter changes, or `unknown`.
    """
    base, best = facts["base"], metrics["best"]
    result = {
        "task": {"type": "text-classification"},
        "dataset": {"name": facts["data"]["validation"]["path"], "type": contract.name},
        "metrics": [{"type": "loss", "name": "validation loss", "value": best["validation_loss"]}],
    }
    content = {
        **({"base_model": base["ref"]} if base["revision"] else {}),
        "library_name": "peft",
        "license": facts.get("base_license") or "unknown",
        "metrics": ["loss"],
        "model-index": [{"name": contract.name, "results": [result]}],
        "pipeline_tag": "text-generation",
        "tags": ["lora", "qlora"],
    }
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in content.items())


def license_of(base: Path) -> str | None:
    """The licence that the base's own card names, if it has one."""
    try:
        text = (base / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    head = text.split("---\n")[1] if text.startswith("---\n") and text.count("---\n") > 1 else ""
    found = re.search(r"^license:\s*([\w.+-]+)\s*$", head, re.M)
    return found[1] if found else None


def _scores(calibration: Mapping[str, Any]) -> str:
    if not calibration["calibrated"]:
        return f"Not calibrated: {calibration['why']}."
    rows = [
        f"| `{name}` | {found['raw']['ece']:.3f} | {found['calibrated']['ece']:.3f} | {found['raw']['brier']:.3f} | "
        f"{found['calibrated']['brier']:.3f} |"
        for name, found in calibration["evidence"]["fields"].items()
    ]
    head = "| field | adaptive ECE, raw | calibrated | Brier, raw | calibrated |\n|---|---|---|---|---|"
    target = (
        f"Error target of rows that need no person: {calibration['target_error']:g}; {calibration['why']}."
    )
    return "\n".join(
        [
            f"Calibrated on {calibration['rows']} labelled rows ({calibration['method']}).",
            "",
            head,
            *rows,
            "",
            target,
        ]
    )
