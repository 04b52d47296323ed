"""Where an answer ends: read off the template, or the eos token where it says nothing, and the same in base and bundle."""

import json
from pathlib import Path

import pytest

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from tests.conftest import ROOT, copy_tokenizer
from tests.families import FAMILIES, PLAIN, tokenizer_files
from train.dataset import load_rows
from train.doctor.rows import Trained, turn_end_problems
from train.examples import encode

LOST = {  # what ends an answer, as the family's template writes it
    "qwen2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama2": " + ' ' + eos_token",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
}


def base_of(name: str, folder: Path) -> Path:
    return tokenizer_files(FAMILIES[name], folder)


def trained(base: Path, contract: Contract) -> Trained:
    rows = load_rows(ROOT / "data/v1/test.jsonl", contract)
    renderer = Renderer.load(base, contract)
    return Trained(base, rows, encode(rows, renderer), [], renderer)


def problems(base: Path, bundle: Path, contract: Contract, stop: int | None = None) -> list[str]:
    served = Renderer.load(bundle, contract)
    stop_id = served.end_of_turn_id if stop is None else stop
    return turn_end_problems(trained(base, contract), bundle, served, stop_id)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.refused])
def test_a_sound_bundle_passes(name: str, contract: Contract, tmp_path: Path) -> None:
    """Though for Qwen's bases, Llama 3, Gemma and Phi 3 the eos token is another; sealed by `fit`, or as they were."""
    base = base_of(name, tmp_path / "base")
    for folder in (sealed := tmp_path / "sealed", copied := tmp_path / "copied"):
        folder.mkdir()
    Renderer.load(base, contract).save(base, sealed)
    copy_tokenizer(base, copied)
    assert problems(base, sealed, contract) == problems(base, copied, contract) == []


def test_a_template_that_says_nothing_is_sound_in_both(contract: Contract, tmp_path: Path) -> None:
    base = base_of("qwen2", tmp_path / "base")
    (base / "chat_template.jinja").write_text(PLAIN)
    assert problems(base, base, contract) == []


@pytest.mark.parametrize("name", LOST)
def test_a_lost_turn_end_is_named(name: str, contract: Contract, tmp_path: Path) -> None:
    """In what is served; and in the base, so that another token was taught than serving stops at."""
    whole, lost = base_of(name, tmp_path / "whole"), base_of(name, tmp_path / "lost")
    template = (lost / "chat_template.jinja").read_text()
    assert LOST[name] in template
    (lost / "chat_template.jinja").write_text(template.replace(LOST[name], ""))
    assert "chat template does not end an answer with the end of turn" in problems(whole, lost, contract)[0]
    assert "chat template does not end an answer with the end of turn" in problems(lost, whole, contract)[0]


def test_another_stop_and_another_eos_are_named(contract: Contract, tmp_path: Path) -> None:
    base, bundle = base_of("qwen3", tmp_path / "base"), base_of("qwen3", tmp_path / "bundle")
    (stops,) = problems(base, bundle, contract, stop=0)
    assert "the engine stops at" in stops and "not at the end of turn <|im_end|>" in stops
    settings = json.loads((bundle / "tokenizer_config.json").read_text())
    (bundle / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|im_start|>"}))
    (eos,) = problems(base, bundle, contract)
    assert eos.startswith("the eos_token <|im_start|> does not end an answer with the end of turn <|im_end|>")


def test_rows_that_do_not_teach_it_are_named(contract: Contract, tmp_path: Path) -> None:
    base = base_of("phi3", tmp_path / "base")
    taught = trained(base, contract)
    for example in taught.examples:
        example["labels"][-1] = taught.renderer.eos_id  # type: ignore[index]
    found = turn_end_problems(taught, base, taught.renderer, taught.renderer.end_of_turn_id)
    assert len(found) == 4 and all(
        "training does not teach the end of turn <|end|>" in each for each in found
    )
