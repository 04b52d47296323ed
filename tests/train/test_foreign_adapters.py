"""Adapters that were trained by other means: served whole, as PEFT reads them, or refused with the true reason."""

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.engine.supervisor import Supervisor
from batch.errors import AdapterError
from batch.scoring.adapters import engine_spec, spec_of
from tests.families import ALL
from train.cli import main
from train.doctor.proof import REQUESTS, prove
from train.doctor.served import answers
from train.importing import another_base, import_folder

ROOT = Path(__file__).parents[2]
LEAVES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATHS = [
    f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
    for layer in (0, 1)
    for name in LEAVES
]
HIGHEST = 64
SERVED: dict[str, dict[str, Any]] = {
    "leaf names": {"target_modules": LEAVES},
    "whole paths": {"target_modules": PATHS},
    "part of the paths": {"target_modules": PATHS[:9]},
    "an expression": {"target_modules": r"model\.layers\.\d+\.(self_attn|mlp)\.(q|v|up|down)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "one layer": {"target_modules": LEAVES, "layers_to_transform": [1]},
    "exclude_modules": {
        "target_modules": "all-linear",
        "exclude_modules": ["k_proj", "model.layers.0.mlp.up_proj"],
    },
    "rsLoRA": {"target_modules": LEAVES, "use_rslora": True, "lora_alpha": 16},
    "alpha_pattern": {
        "target_modules": LEAVES,
        "alpha_pattern": {"v_proj": 32, r"layers\.1\.mlp\.up_proj": 2},
    },
    "rank_pattern above r": {"target_modules": LEAVES, "rank_pattern": {"q_proj": 24, "down_proj": 2}},
    "patterns of whole paths": {
        "target_modules": LEAVES,
        "rank_pattern": {"model.layers.0.self_attn.q_proj": 7},
        "alpha_pattern": {r"^model\.layers\.1\.mlp\.down_proj": 3},
    },
    "layers_pattern": {"target_modules": LEAVES, "layers_to_transform": [0], "layers_pattern": "layers"},
    "exclude_modules, an expression": {
        "target_modules": "all-linear",
        "exclude_modules": r".*layers\.1\.(mlp|self_attn)\.(up|k)_proj",
    },
    "a negative alpha": {"target_modules": ["v_proj", "o_proj"], "lora_alpha": -8},
    "MiCA": {"target_modules": LEAVES, "init_lora_weights": "mica"},
    "fan_in_fan_out": {"target_modules": ["q_proj", "down_proj"], "fan_in_fan_out": True},
    "rank 3": {"target_modules": LEAVES, "r": 3},
    "rank 64": {"target_modules": ["gate_proj", "up_proj"], "r": HIGHEST},
    "float16": {"target_modules": LEAVES},
    "bfloat16": {"target_modules": LEAVES},
    "float64": {"target_modules": LEAVES},
}
SHORT = (
    "leaf names",
    "part of the paths",
    "an expression",
    "exclude_modules",
    "rsLoRA",
    "alpha_pattern",
    "rank_pattern above r",
    "patterns of whole paths",
    "a negative alpha",
    "rank 64",
    "bfloat16",
)


def foreign(base: Path, folder: Path, name: str, **config: Any) -> Path:
    """A PEFT folder as its own library saves it, with random weights that act."""
    torch.manual_seed(len(name))
    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT advises against some of them
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    for parameter, weight in model.named_parameters():
        if "lora_" in parameter and weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.15)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, save_embedding_layers=False)
    if hasattr(torch, name) and isinstance(dtype := getattr(torch, name), torch.dtype):
        weights = folder / "adapter_model.safetensors"
        save_file({key: value.to(dtype) for key, value in load_file(weights).items()}, weights)
    return folder


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tiny_bundle: Bundle) -> Iterator[Supervisor]:
    spec = engine_spec(tiny_base, [tiny_bundle])
    with Supervisor(
        dataclasses.replace(spec, max_lora_rank=HIGHEST, dtype="float32", max_num_seqs=8)
    ) as process:
        yield process


@pytest.mark.parametrize("name", SERVED if ALL else SHORT)
def test_a_foreign_adapter_is_served_as_peft_reads_it(
    name: str, engine: Supervisor, tiny_base: Path, contract: Contract, tmp_path: Path, capsys: Any
) -> None:
    folder = foreign(tiny_base, tmp_path / "plain", name, **SERVED[name])
    bundle = import_folder(folder, contract, str(tiny_base), None, Registry(tmp_path / "adapters"))
    adapter = spec_of(bundle)
    engine.load(adapter)
    completions = answers(engine, adapter.name, bundle.renderer.encode_requests(REQUESTS))
    proof = prove(bundle, tiny_base, REQUESTS, completions)
    assert proof.answers == len(REQUESTS) and proof.differs < 1e-3 and proof.logprob < 0.05


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora is DoRA"),
        ({"target_modules": [*LEAVES, "lm_head"]}, "lm_head adapts the output layer"),
        ({"target_modules": [*LEAVES, "embed_tokens"]}, "embed_tokens.*adapts an embedding"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save replaces whole modules"),
        ({"bias": "lora_only"}, "bias trains biases"),
        ({"lora_bias": True}, "lora_bias trains biases"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices trains embeddings"),
    ],
)
def test_what_is_not_served_is_refused_with_the_true_reason(
    tiny_base: Path, contract: Contract, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = foreign(tiny_base, tmp_path / "plain", "x", **{"target_modules": LEAVES, **config})
    registry = Registry(tmp_path / "adapters")
    with pytest.raises(AdapterError, match=message) as refused:
        import_folder(folder, contract, str(tiny_base), None, registry)
    assert refused.value.exit_code == 2 and not registry.list()
    assert not list(registry.root.glob(".building-*"))


@pytest.mark.parametrize(
    ("said", "revision", "base", "warned"),
    [
        ("Qwen/Qwen3-4B-Base", None, "Qwen/Qwen3-4B-Instruct", True),
        ("Qwen/Qwen3-4B", "abc", "Qwen/Qwen3-4B@def", True),
        ("/home/her/models/qwen3-4b/", None, "Qwen/Qwen3-4B", False),
        ("/srv/hub/models--Qwen--Qwen3-4B/snapshots/0123", None, "models/Qwen3-4B", False),
        ("Qwen/Qwen3-4B", "abc", "Qwen/Qwen3-4B@abc", False),
        (None, None, "Qwen/Qwen3-4B", False),
    ],
)
def test_an_adapter_of_another_base_of_the_same_shapes(
    tiny_base: Path,
    contract: Contract,
    tmp_path: Path,
    said: str | None,
    revision: str | None,
    base: str,
    warned: bool,
) -> None:
    """It fits, and its answers on the wrong base are those of PEFT on it."""
    ref, _, commit = base.partition("@")
    folder = foreign(tiny_base, tmp_path / "plain", "x", target_modules=LEAVES)
    config = folder / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "base_model_name_or_path": said, "revision": revision}))
    bundle = import_folder(folder, contract, str(tiny_base), None, Registry(tmp_path / "adapters"))
    named = {**bundle.manifest, "base": {**bundle.base, "ref": ref, "revision": commit or None}}
    warning = another_base(dataclasses.replace(bundle, manifest=named))
    assert bool(warning) == warned
    assert all(not warned or str(name) in str(warning) for name in (said, ref))


def drop(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        weights = folder / "adapter_model.safetensors"
        save_file({key: value for key, value in load_file(weights).items() if name not in key}, weights)

    return change


def moved(by: int, more: bytes = b"") -> Callable[[Path], object]:
    """Moves the tensor that lies last, and writes `more` behind all of them."""

    def change(folder: Path) -> None:
        weights = folder / "adapter_model.safetensors"
        content = weights.read_bytes()
        length = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:length])
        tensors = (entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
        last = max(tensors, key=lambda offsets: offsets[1])
        last[:] = [last[0] + by, last[1] + by]
        text = json.dumps(header).encode()
        weights.write_bytes(len(text).to_bytes(8, "little") + text + content[length:] + more)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            moved(0, b"x"),
            r"adapter_model\.safetensors: has bytes that no tensor has, or that two have; save it again",
        ),
        (moved(4, bytes(4)), "bytes that no tensor has"),  # a gap
        (moved(-4), "bytes that no tensor has"),  # an overlap
        (drop("layers.1.mlp.up_proj.lora_B"), r"lacks lora_B of model\.layers\.1\.mlp\.up_proj"),
        (drop("layers.1.mlp.up_proj"), r"has no weights for layers\.1\.mlp\.up_proj"),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
            "is a pickle",
        ),
        (lambda folder: (folder / "adapter_config.json").unlink(), "it has no adapter_config.json"),
        (lambda folder: shutil.rmtree(folder), "it has no adapter_config.json|is a"),
    ],
)
def test_a_damaged_one_is_refused_without_a_trace(
    tiny_base: Path, contract: Contract, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    folder = foreign(tiny_base, tmp_path / "plain", "x", target_modules=LEAVES)
    change(folder)
    registry = Registry(tmp_path / "adapters")
    with pytest.raises(AdapterError, match=message):
        import_folder(folder, contract, str(tiny_base), None, registry)
    assert not list(registry.root.glob("*"))


def test_the_command_imports_and_proves(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "adapters"))
    folder = foreign(tiny_base, tmp_path / "plain", "x", target_modules=PATHS)
    line = ["import", str(folder), "--contract", str(ROOT / "data/contract.toml"), "--base", str(tiny_base)]
    done = CliRunner().invoke(main, line)
    assert done.exit_code == 0 and "verified: 8 answers" in done.output, done.output
    bundle = Bundle.open(Registry().resolve("latest"))
    assert bundle.manifest["imported"] and bundle.lora_modules == tuple(sorted(LEAVES))
    assert {
        file.stat().st_mode & 0o777 for file in bundle.path.iterdir() if file.name != "manifest.json"
    } == {0o644}
    monkeypatch.chdir("/")  # the base is found from any folder
    assert bundle.resolve_base().resolve() == tiny_base.resolve()
    shutil.rmtree(folder)
    assert CliRunner().invoke(main, line).exit_code == 2


def test_a_base_that_was_a_folder_is_never_looked_up_on_a_hub(
    tiny_base: Path, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "bases/tiny")
    monkeypatch.chdir(tmp_path)
    folder = foreign(tiny_base, tmp_path / "plain", "x", target_modules=LEAVES)
    bundle = import_folder(folder, contract, "bases/tiny", None, Registry(tmp_path / "elsewhere/adapters"))
    moved = shutil.copytree(bundle.path, tmp_path / "far/bundle")
    monkeypatch.chdir("/")
    assert Bundle.open(moved).resolve_base().resolve() == base.resolve()
    shutil.rmtree(base)
    monkeypatch.setenv("BATCH_ROUTE_ONLINE", "1")
    with pytest.raises(AdapterError, match=r"no base model at bases/tiny, nor at .*; name its folder"):
        Bundle.open(moved).resolve_base()
    assert json.loads((moved / "manifest.json").read_text())["base"]["ref"] == "bases/tiny"
