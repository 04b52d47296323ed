"""`batch-train export`: for a hub, from which it is a bundle again; merged, with the answers of base and adapter."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from batch.adapter.bundle import Bundle
from batch.contract.contract import Contract
from batch.errors import AdapterError, InputError
from tests.families import ALL
from train.cli import main
from train.exporting import export_merged
from train.fit import card


def export(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["export", *map(str, words)])
    return result.exit_code, result.output


def test_from_a_hub_and_back(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """With the files that an upload and a download add."""
    code, said = export(tiny_bundle.path, tmp_path / "hub")
    assert code == 0 and tiny_bundle.digest[:12] in said
    (tmp_path / "hub/.gitattributes").write_text("*.safetensors filter=lfs\n")
    (tmp_path / "hub/README.md").write_text("a card\n")
    (tmp_path / "hub/.cache/huggingface").mkdir(parents=True)
    assert Bundle.open(tmp_path / "hub").digest == tiny_bundle.digest
    (tmp_path / "hub/notes.txt").write_text("no file of a hub")
    with pytest.raises(AdapterError, match=r"notes\.txt is not in"):
        Bundle.open(tmp_path / "hub")
    assert export(tiny_bundle.path, tmp_path / "hub")[0] == 2  # it is there
    assert export(tiny_bundle.path, tmp_path / "other", "--dtype", "float32")[0] == 2


def test_a_place_that_cannot_be_is_refused_before_the_base_is_loaded(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merging found out only after it had asked the model eight requests."""
    monkeypatch.setattr("train.exporting.load_trained", never)
    monkeypatch.setattr(Bundle, "resolve_base", never)
    (tmp_path / "there").mkdir()
    places = {
        tmp_path / "there": "exists",
        Path("/proc/new"): "cannot write",
        tmp_path / ("x" * 256): "longer",
    }
    for folder, why in places.items():
        for words in (["--merge"], []):
            code, said = export(tiny_bundle.path, folder, *words)
            assert code == 2 and why in said and said.count("\n") == 1, said
        with pytest.raises(InputError, match=why):
            export_merged(tiny_bundle, tiny_bundle.path, folder)
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]


def never(*_: object) -> None:
    raise AssertionError("work was begun")


def test_a_full_disk_leaves_no_half_of_a_folder(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left made the rerun that it asked for be refused, and it named the source as the full place."""
    copy, folder = shutil.copyfile, tmp_path / "hub"

    def full(source: Path, place: Path) -> None:
        copy(source, place)
        if source.name == "contract.json":
            raise OSError(errno.EFBIG, "File too large", str(source))

    with monkeypatch.context() as patched:
        patched.setattr("train.exporting.shutil.copyfile", full)
        code, said = export(tiny_bundle.path, folder)
    assert code == 75 and f"{folder}: no space left" in said and str(tiny_bundle.path) not in said
    assert list(tmp_path.iterdir()) == []
    assert export(tiny_bundle.path, folder)[0] == 0
    assert Bundle.open(folder).digest == tiny_bundle.digest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"] if ALL else ["float32"])
def test_merged(tiny_bundle: Bundle, tmp_path: Path, dtype: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    code, said = export(tiny_bundle.path, tmp_path / "merged", "--merge", "--dtype", dtype)
    assert code == 0, said
    told = json.loads((tmp_path / "merged/export.json").read_text())
    assert told["adapter"] == tiny_bundle.digest and told["answers"] == 8 and told["dtype"] == dtype
    assert set(told["files"]) >= {"model.safetensors", "config.json", "tokenizer.json", "contract.json"}
    if dtype == "float32":
        assert told["same"] == 8 and told["differs"] < 1e-5
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == getattr(torch, dtype) and not [
        name for name in merged.state_dict() if "lora" in name
    ]
    apart = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_bundle.resolve_base(), dtype=torch.float32),
        tiny_bundle.path,
    )
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "merged")("Find it.")["input_ids"]])
    with torch.inference_mode():
        assert (merged(ids).logits.float() - apart(ids).logits).abs().max() < (
            1e-4 if dtype == "float32" else 0.5
        )


def test_the_card_is_one_that_the_hub_reads(contract: Contract, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A base\n")
    assert card.license_of(tmp_path) == "apache-2.0" and card.license_of(tmp_path / "none") is None
    facts = {
        "base": {"ref": "org/base", "revision": "abc"},
        "base_license": card.license_of(tmp_path),
        "data": {"validation": {"path": "data/a: 'b'.jsonl"}},
    }
    head = card.front_matter(contract, facts, {"best": {"validation_loss": 0.25}})
    data: Any = ModelCard(f"---\n{head}---\n# x\n").data
    assert data.license == "apache-2.0" and data.base_model == "org/base" and data.library_name == "peft"
    (result,) = data.eval_results
    assert result.metric_value == 0.25 and result.dataset_name == "data/a: 'b'.jsonl"
    local = card.front_matter(
        contract,
        {**facts, "base": {"ref": "data/mini-base", "revision": None}, "base_license": None},
        {"best": {"validation_loss": 0.25}},
    )
    assert 'license: "unknown"' in local and "base_model" not in local
