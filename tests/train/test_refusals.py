"""What cannot be trained or served is refused by `plan` and by `fit` alike, in one line with exit code 2, within seconds."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.train.test_families import recipe
from train.cli import main
from train.fit.base_checks import text_models

SECONDS = 10  # of processor time, the template's process included
Change = Callable[[Path], object]


def edit(name: str, change: Callable[[Any], object]) -> Change:
    def apply(base: Path) -> None:
        content = json.loads((base / name).read_text(encoding="utf-8"))
        change(content)
        (base / name).write_text(json.dumps(content), encoding="utf-8")

    return apply


def config(**values: Any) -> Change:
    return edit("config.json", lambda content: content.update(values))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def apply(base: Path) -> None:
        tensors = load_file(base / "model.safetensors")
        change(tensors)
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    return apply


def template(change: Callable[[str], str]) -> Change:
    def apply(base: Path) -> None:
        path = base / "chat_template.jinja"
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    return apply


def one_layer_more(content: dict[str, Any]) -> None:
    content["num_hidden_layers"] += 1
    content["layer_types"] = content["num_hidden_layers"] * ["full_attention"]


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")


def without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


CASES: dict[str, tuple[Change, str]] = {
    "a kind that transformers does not know": (config(model_type="frobnicate"), "of no model that answers in text"),
    "an encoder and a decoder": (config(model_type="t5", architectures=["T5ForConditionalGeneration"]), "of no model that"),
    "no architecture": (config(architectures=None), "names no architecture"),
    "an embedding of another size": (config(hidden_size=32), r"embed_tokens is of shape \[1024, 64\].*it is \[1024, 32\]"),
    "heads of another size": (config(head_dim=16), r"q_proj is of shape \[64, 64\].*it is \[32, 64\]"),
    "a layer without weights": (edit("config.json", one_layer_more), "has no weights of layers.2"),
    "one matrix missing": (weights(without("model.layers.0.mlp.gate_proj.weight")), r"no weights of layers\.0\.mlp\.gate"),
    "GPTQ": (config(quantization_config={"quant_method": "gptq"}), r"quantised already \(gptq\)"),
    "compressed tensors": (config(quantization_config={"quant_method": "compressed-tensors"}), "quantised already"),
    "remote code": (config(auto_map={"AutoModel": "m.M"}), "names remote code"),
    "few positions": (config(max_position_embeddings=300), "the base holds 300; without a request they take"),
    "a torn file": (lambda base: os.truncate(base / "model.safetensors", 90_000), "is cut off before the end of"),
    "bytes behind the tensors": (lambda base: os.truncate(base / "model.safetensors", (base / "model.safetensors").stat().st_size + 1), "model.safetensors: has bytes that no tensor has"),
    "pickles": (lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), "holds no safetensors"),
    "a template that says nothing of the answer": (template(lambda t: t.split("{% if")[0].replace("<|im_end|>", "")), "ends with the request"),
    "a template that draws": (template(lambda t: "{{ [1, 2] | random }}" + t), "the chat template fails: .*random"),
    "a template that repeats the request": (template(lambda t: t + "{{ messages[-1].content }}"), "the request exactly once"),
    "a template without the instructions": (template(lambda t: t.replace("message.content", "message.content[:20]")), "does not hold the instructions"),
    "a template that never ends": (template(lambda t: "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3 + t), "more than 2 seconds"),
    "lower case": (edit("tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"})), "the tokenizer makes"),
    "WordPiece": (edit("tokenizer.json", lambda c: c.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})), "cannot spell every text"),
    "an eos token of nothing": (edit("tokenizer_config.json", lambda c: c.update(eos_token="</end>")), "'</end>' is not in the vocabulary"),
}  # fmt: skip


def spent() -> float:
    return sum(os.times()[:4])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["plan", "fit"])
def test_a_base_is_refused_in_seconds(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, case: str
) -> None:
    change, message = CASES[case]
    base = shutil.copytree(tiny_base, tmp_path / "base")
    change(base)
    refused(recipe(base, tmp_path).path, command, message, monkeypatch)


def refused(path: Path, command: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = path.parent / "adapters"
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(registry))
    began = spent()
    done = CliRunner().invoke(main, [command, str(path)])
    assert done.exit_code == 2, done.output
    assert spent() - began < SECONDS
    assert len(done.output.strip().splitlines()) == 1 and re.search(message, done.output), done.output
    assert not registry.exists() or not list(registry.iterdir())


def test_a_base_that_holds_nan_is_refused_before_the_training(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` does not read the weights: eight gigabytes take long."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    weights(not_a_number)(base)
    message = r"model\.layers\.1\.mlp\.up_proj\.weight holds a value that is no number"
    refused(recipe(base, tmp_path).path, "fit", message, monkeypatch)


@pytest.mark.parametrize("split", ["validation", "calibration"])
@pytest.mark.parametrize("command", ["plan", "fit"])
def test_a_row_of_too_many_tokens_is_refused_in_whatever_split(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, split: str
) -> None:
    """Few characters, many tokens: no tokenizer of a thousand tokens knows them."""
    row = json.loads((ROOT / "data/v1/validation.jsonl").read_text().splitlines()[0])
    row |= {"id": "long", "request": "\u0f3c\u1362" * 500}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    path = recipe(tiny_base, tmp_path).path
    text = re.sub(f"(?m)^{split} = .*\n", "", path.read_text())
    path.write_text(text.replace("[lora]", f'{split} = "{tmp_path}/rows.jsonl"\n[lora]'))
    refused(
        path, command, r"rows\.jsonl:1: the request has \d+ tokens, the contract accepts 1024", monkeypatch
    )


HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "vllm"}
PROGRAM = f"""
import sys
from train.cli import main
from train.fit.base_checks import text_models
try:
    main()
finally:
    print("loaded", *{HEAVY} & {{name.split(".")[0] for name in sys.modules}})
"""


@pytest.mark.parametrize(
    "case",
    [
        "a kind that transformers does not know",
        "an encoder and a decoder",
        "GPTQ",
        "few positions",
        "a torn file",
        "WordPiece",
    ],
)
@pytest.mark.parametrize("command", ["plan", "fit"])
def test_what_the_files_tell_is_refused_without_torch(
    tiny_base: Path, tmp_path: Path, command: str, case: str
) -> None:
    """As a process of its own: to import what trains takes longer than to check everything."""
    change, message = CASES[case]
    change(base := shutil.copytree(tiny_base, tmp_path / "base"))
    refused_without_torch(recipe(base, tmp_path).path, command, message)


@pytest.mark.parametrize("command", ["plan", "fit"])
def test_rows_are_refused_without_torch(tiny_base: Path, tmp_path: Path, command: str) -> None:
    path = recipe(tiny_base, tmp_path).path
    path.write_text(path.read_text().replace("v1/validation.jsonl", "v1/train.jsonl"))
    refused_without_torch(path, command, "ids are unique over all splits")


def refused_without_torch(path: Path, command: str, message: str) -> None:
    line = [sys.executable, "-c", PROGRAM, command, str(path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert done.stdout.split() == ["loaded"]


def test_the_models_read_in_the_source_are_those_that_transformers_takes() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert text_models() == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
