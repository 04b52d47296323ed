"""Served is what was trained: the expanded base has the 4-bit weights, is made once, and made again anywhere."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from rich.console import Console
from safetensors.torch import load_file, save_file

from batch.adapter.base_model import base_digest
from batch.adapter.bundle import Bundle, seal_bundle
from batch.adapter.expanded import Expansion
from batch.contract.contract import Contract
from batch.engine.expand import expand, load_base
from batch.errors import AdapterError, InputError
from tests.conftest import ROOT, make_bundle
from train.config import Quantisation
from train.dataset import Row, load_rows
from train.evaluation.evaluate import Evaluation, evaluate
from train.fit.serving import choose_served_base, worse_at

QUIET = Console(file=io.StringIO())


@pytest.fixture
def expanded(tiny_base: Path, contract: Contract, tmp_path: Path) -> Bundle:
    """A bundle that is served on the tiny base's 4-bit weights, in a registry of its own."""
    folder = make_bundle(tiny_base, contract, tmp_path / "adapters").path
    choose_served_base(folder, tiny_base, Quantisation(), [], QUIET)
    return Bundle.open(folder)


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("nf4", False), ("fp4", True)])
def test_it_holds_the_values_that_training_computes_with(
    tiny_base: Path, tmp_path: Path, kind: str, double: bool
) -> None:
    expand(tiny_base, tmp_path, kind, double, "float32")
    written, before = load_file(tmp_path / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    quantised = 0
    for name, module in load_base(tiny_base, kind, double, torch.float32).named_modules():
        if isinstance(module, Linear4bit):
            quantised += 1
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.equal(written.pop(f"{name}.weight"), weight)
            assert not torch.equal(before.pop(f"{name}.weight"), weight)
    assert quantised == 2 * 7
    assert written.keys() == before.keys()  # embeddings and norms are as they were
    assert all(torch.equal(written[name], before[name]) for name in before)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "float32" and "quantization_config" not in config


def test_adapters_of_one_base_share_it(expanded: Bundle, tiny_base: Path, contract: Contract) -> None:
    other = make_bundle(tiny_base, contract, expanded.path.parent, scale=0.01).path
    choose_served_base(other, tiny_base, Quantisation(), [], QUIET)
    assert Bundle.open(other).resolve_base() == expanded.resolve_base() != tiny_base
    assert expanded.base["served"]["sha256"] == base_digest(expanded.resolve_base())


def test_it_is_made_again_where_it_is_missing_with_the_same_bytes(expanded: Bundle, tiny_base: Path) -> None:
    home = expanded.resolve_base()
    home.rename(home.with_name("moved"))
    again = expanded.resolve_base(str(tiny_base))  # by another process, as on a machine that serves only
    assert again == home and base_digest(again) == base_digest(home.with_name("moved"))


def test_a_registry_of_links_finds_what_lies_beside_the_bundles(expanded: Bundle, tmp_path: Path) -> None:
    """It was made a second time, which took longer than a run."""
    link = tmp_path / "elsewhere/registry" / expanded.digest
    link.parent.mkdir(parents=True)
    link.symlink_to(expanded.path)
    assert Bundle.open(link).resolve_base() == expanded.resolve_base()
    assert not (tmp_path / "elsewhere/bases").exists()


def test_other_weights_in_its_place_are_refused(expanded: Bundle) -> None:
    home = expanded.resolve_base()
    weights = load_file(home / "model.safetensors")
    weights["model.norm.weight"] += 1.0
    save_file(weights, home / "model.safetensors")
    with pytest.raises(AdapterError, match=r"not the base that adapter .* remove it, and it is made again"):
        expanded.resolve_base()


def test_a_place_that_cannot_be_written_names_the_remedy(
    expanded: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BATCH_ROUTE_BASES", str(tmp_path / "file" / "bases"))
    with pytest.raises(InputError, match=r"cannot write .*BATCH_ROUTE_BASES"):
        expanded.resolve_base()


@pytest.mark.parametrize(
    "quantisation", [Quantisation(type="none"), Quantisation(serve="original")], ids=["none", "original"]
)
def test_the_original_serves_where_the_recipe_wants_it(
    tiny_base: Path, contract: Contract, tmp_path: Path, quantisation: Quantisation
) -> None:
    folder = make_bundle(tiny_base, contract, tmp_path / "adapters").path
    choose_served_base(folder, tiny_base, quantisation, [], QUIET)
    assert Bundle.open(folder).resolve_base() == tiny_base and not (tmp_path / "bases").exists()


def test_too_few_rows_measure_nothing(tiny_base: Path, contract: Contract, tmp_path: Path) -> None:
    folder, told = make_bundle(tiny_base, contract, tmp_path / "adapters").path, io.StringIO()
    measured = Quantisation(serve="measured")
    choose_served_base(folder, tiny_base, measured, [], Console(file=told, width=200))
    assert "0 calibration rows are too few" in told.getvalue()
    assert Bundle.open(folder).expansion is not None


class Answer(NamedTuple):
    answer: dict[str, Any]
    error_code: None = None


def test_the_original_must_be_no_worse_at_any_field(contract: Contract) -> None:
    """Eight rows lost in one field and eight won in another: all fields together would not tell."""
    rows = load_rows(ROOT / "data/v2/train.jsonl", contract)[:32]

    def judged(name: str, field: str, value: Any, among: list[Row]) -> Evaluation:
        wrong = {row.id for row in [row for row in among if row.answer[field] != value][:8]}
        answers = [Answer({**row.answer, **({field: value} if row.id in wrong else {})}) for row in rows]
        return evaluate(rows, answers, contract, name, "")

    expanded = judged("expanded", "risk", "low", rows[16:])
    original = judged("original", "needs_review", False, rows[:16])
    assert worse_at(expanded, original) == ["needs_review"]
    assert worse_at(original, expanded) == ["risk"] and worse_at(original, original) == []


def test_a_bundle_of_another_version_is_refused(expanded: Bundle) -> None:
    facts = {key: value for key, value in expanded.manifest.items() if key != "files"}
    seal_bundle(expanded.path, {**facts, "served_base": {"bits": 3}})
    with pytest.raises(AdapterError, match=r"expanded by another version.*train it again"):
        Bundle.open(expanded.path).resolve_base()


def test_the_folder_hangs_on_all_that_decides_its_bytes() -> None:
    one = Expansion("a" * 64, "nf4", True, "float32")
    others = [
        dataclasses.replace(one, **change)
        for change in (
            {"original": "b" * 64},
            {"quantisation": "fp4"},
            {"double": False},
            {"dtype": "bfloat16"},
        )
    ]
    assert len({each.key for each in (one, *others)}) == 5
    assert dataclasses.replace(one, sha256="c" * 64).key == one.key
    assert np.all([len(each.key) == 64 for each in others])
