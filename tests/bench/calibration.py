"""Are calibrated scores what they say? `python -m tests.bench.calibration ADAPTER [--target-error F] [--rows N]`.

Calibrates a copy of the adapter on generated requests, routes a separate generated set by `batch-route`, and measures on it
the adaptive ECE of each field and the errors among `triage = auto` rows. Phrases of both sets are held out from the mini
base's training (`train/mini_base/requests.py`); the sets share no request. A shifted set has other held-out phrases than those
calibrated on.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from train.fit.calibrate import describe, upper_bound
from train.fit.calibrated import calibrate_bundle, summary
from train.mini_base.generate import labelled
from train.mini_base.requests import Split


def generated(
    contract: Contract, split: Split, seed: int, count: int, beside: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Labelled requests by the policy table, none nearly one of those `beside`, to which they are added."""
    rows = list(itertools.islice(labelled(contract, split, seed, [row["request"] for row in beside]), count))
    beside += rows
    return rows


def measure(scored: pl.DataFrame, gold: list[dict[str, Any]], contract: Contract) -> None:
    labels = pl.DataFrame(
        [{key: row[key] for key in ("id", *(f.name for f in contract.scored_fields))} for row in gold]
    )
    both = scored.join(labels, on="id", suffix="_gold", maintain_order="left").filter(
        pl.col("status") == "ok"
    )
    right = {f.name: (both[f.name] == both[f"{f.name}_gold"]).to_numpy() for f in contract.scored_fields}
    for name, hit in right.items():
        found = describe(both[f"{name}_score"].to_numpy().astype(float), hit)
        print(
            f"  {name:<22} accuracy {hit.mean():.3f}   adaptive ECE {found['ece']:.4f}   Brier {found['brier']:.4f}"
        )
    if "triage" in both.columns:
        auto = (both["triage"] == "auto").to_numpy()
        wrong = int((~np.all(list(right.values()), axis=0))[auto].sum())
        share = wrong / max(1, auto.sum())
        print(
            f"  triage = auto: {auto.sum()} of {len(both)} rows, {wrong} wrong: {share:.4f}, at most {upper_bound(wrong, int(auto.sum()), 0.05):.4f}"
        )


@click.command()
@click.argument("adapter")
@click.option("--target-error", default=0.02)
@click.option("--rows", default=2000, help="Rows to calibrate on; the separate sets have 3/5 of it each.")
def main(adapter: str, target_error: float, rows: int) -> None:
    bundle = Bundle.open(Registry().resolve(adapter))
    contract, known = bundle.contract, list[dict[str, Any]]()
    sets = {
        "calibrated on": generated(contract, "validation", 11, rows, known),
        "separate": generated(contract, "validation", 13, rows * 3 // 5, known),
        "shifted": generated(contract, "test", 12, rows * 3 // 5, known),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = folder / "calibration.jsonl"
        dataset.write_text("".join(json.dumps(row) + "\n" for row in sets["calibrated on"]), encoding="utf-8")
        made, content = calibrate_bundle(bundle, dataset, target_error, Registry(folder / "adapters"), print)
        print(f"calibrated on {rows} rows", *summary(content), sep="\n  ")
        for label in ("separate", "shifted"):
            pl.DataFrame({key: [row[key] for row in sets[label]] for key in ("id", "request")}).write_parquet(
                folder / f"{label}.parquet"
            )
            line = [
                str(Path(sys.executable).parent / "batch-route"),
                str(folder / f"{label}.parquet"),
                str(folder / f"{label}-out.parquet"),
            ]
            subprocess.run([*line, "--adapter", str(made.path)], check=True, stdout=subprocess.DEVNULL)
            print(f"{label}, {len(sets[label])} rows")
            measure(pl.read_parquet(folder / f"{label}-out.parquet"), sets[label], contract)


if __name__ == "__main__":
    main()
