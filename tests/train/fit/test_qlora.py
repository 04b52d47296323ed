"""QLoRA for real, on a tiny random base: 4-bit NF4 by bitsandbytes, LoRA by peft, the loop by TRL."""

import dataclasses
import io
import json
import math
import threading
import time
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from rich.console import Console
from transformers import TrainerCallback
from trl import SFTConfig

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.errors import AdapterError, ConfigError, OutputLockedError
from train.config import Config, Quantisation
from train.dataset import load_rows
from train.examples import encode
from train.fit import qlora
from train.fit.checkpoints import last_checkpoint
from train.fit.inputs import prepare
from train.fit.model import compute_dtype, load_quantised
from train.fit.runs import run_folder
from train.fit.serving import expansion_of

ROOT = Path(__file__).parents[3]
SILENT = Console(quiet=True)
FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "calibration.json",
    "card.md",
    "chat_template.jinja",
    "contract.json",
    "loss.png",
    "loss.svg",
    "manifest.json",
    "metrics.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def recipe(tiny_base: Path, folder: Path, **training: object) -> Config:
    """A recipe of six steps on v1 that validates every second step."""
    values = {"max_steps": 6, "batch_size": 2, "eval_every": 2, "learning_rate": 0.01, "seed": 3, **training}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "recipe.toml"
    path.write_text(
        f'[base]\nmodel = "{tiny_base}"\n[data]\ncontract = "{ROOT}/data/contract.toml"\n'
        f'train = "{ROOT}/data/v1/train.jsonl"\nvalidation = "{ROOT}/data/v1/validation.jsonl"\n'
        "[lora]\nr = 4\n[training]\n" + "\n".join(lines)
    )
    return Config.load(path)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("registry") / "adapters")


@pytest.fixture(scope="module")
def bundle(tiny_base: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return qlora.fit(prepare(recipe(tiny_base, tmp_path_factory.mktemp("recipe"))), registry, SILENT)


def test_the_mask_is_the_answer_and_its_end_of_turn(tiny_base: Path, contract: Contract) -> None:
    renderer = Renderer.load(tiny_base, contract)
    rows = load_rows(ROOT / "data/v1/train.jsonl", contract)
    for row, example in zip(rows, encode(rows, renderer), strict=True):
        prompt = renderer.encode_prompt(row.request)
        supervised = [token for token in example["labels"] if token != -100]
        assert example["input_ids"][: len(prompt)] == prompt and len(prompt) < len(example["input_ids"])
        assert example["labels"][: len(prompt)] == [-100] * len(prompt)
        assert example["input_ids"][len(prompt) :] == supervised
        assert supervised[-1] == renderer.end_of_turn_id
        assert renderer.decode(supervised[:-1]) == contract.serialise(row.answer)


def test_packing_and_the_trainer_keep_every_label(tiny_base: Path, tmp_path: Path) -> None:
    """What a row's last token sees of the pack is that row, label by label."""
    wanted = prepare(recipe(tiny_base, tmp_path))
    trainer = qlora.build_trainer(wanted, tmp_path / "run", SILENT)
    examples = encode(wanted.splits["train"], wanted.renderer)
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    ends = (batch["input_ids"][0] == wanted.renderer.end_of_turn_id) & (batch["labels"][0] != -100)
    assert ends.sum() == wanted.config.training.batch_size
    for end, example in zip(ends.nonzero().flatten().tolist(), examples, strict=False):
        seen = batch["attention_mask"][0, 0, end]
        assert batch["input_ids"][0, seen].tolist() == example["input_ids"]
        assert batch["labels"][0, seen].tolist() == example["labels"]
        assert batch["position_ids"][0, seen].tolist() == list(range(len(example["input_ids"])))


def test_the_base_is_nf4_and_only_the_adapter_trains(tiny_base: Path, tmp_path: Path) -> None:
    model = load_quantised(tiny_base, recipe(tiny_base, tmp_path))
    kinds = {type(module).__name__ for module in model.modules()}
    assert "Linear4bit" in kinds
    weights = [p for p in model.parameters() if type(p).__name__ == "Params4bit"]
    assert len(weights) == 2 * 7
    assert all(p.quant_state.quant_type == "nf4" and p.quant_state.nested for p in weights)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    before = [p.quant_state.absmax.clone() for p in weights]
    with torch.no_grad():
        model.eval()(torch.tensor([[1, 2, 3]]))
    # not repacked
    assert all(torch.equal(p.quant_state.absmax, b) for p, b in zip(weights, before, strict=True))
    assert len(trained) == 2 * 7 * 2 and all(".lora_" in name for name in trained)


def test_a_machine_with_several_gpus_trains_on_one(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL refuses to train where `Trainer` counts two."""

    class Seeing(SFTConfig):  # type: ignore[misc]
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 2

    monkeypatch.setattr(qlora, "SFTConfig", Seeing)
    trainer = qlora.build_trainer(prepare(recipe(tiny_base, tmp_path)), tmp_path / "run", SILENT)
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 2


@pytest.mark.parametrize(
    ("in_hardware", "dtype"), [(True, torch.bfloat16), (False, torch.float32)], ids=["A100", "T4"]
)
def test_a_gpu_that_has_to_make_bfloat16_up_computes_in_float32(
    in_hardware: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or in_hardware
    )
    assert compute_dtype(Quantisation()) == dtype
    assert compute_dtype(Quantisation(compute_dtype="bfloat16")) == torch.bfloat16
    assert expansion_of("0" * 64, Quantisation()).dtype == str(dtype).removeprefix("torch.")


def test_fit_leaves_exactly_the_bundle(bundle: Bundle, registry: Registry) -> None:
    assert {path.name for path in bundle.path.iterdir()} == FILES
    assert {path.name for path in registry.root.iterdir()} == {".runs", "aliases", bundle.digest}
    assert list((registry.root / ".runs").iterdir()) == []
    assert registry.aliases() == {"latest": bundle.digest, "champion": bundle.digest}


def test_the_bundle_says_how_it_was_made(bundle: Bundle, tiny_base: Path) -> None:
    metrics = json.loads((bundle.path / "metrics.json").read_text())
    train = [entry for entry in metrics["history"] if "loss" in entry]
    validation = {
        entry["step"]: entry["validation_loss"] for entry in metrics["history"] if "validation_loss" in entry
    }
    assert [entry["step"] for entry in train] == [1, 2, 3, 4, 5, 6] and list(validation) == [2, 4, 6]
    assert train[-1]["loss"] < train[0]["loss"] < 1.2 * math.log(1024)
    assert metrics["best"] == {"step": 6, "validation_loss": min(validation.values())}
    assert 0 < metrics["parameters"]["trainable"] < metrics["parameters"]["total"]
    assert json.loads((bundle.path / "calibration.json").read_text())["calibrated"] is False
    adapter = json.loads((bundle.path / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tiny_base)
    assert adapter["target_modules"] == [
        f"{name}_proj" for name in ("down", "gate", "k", "o", "q", "up", "v")
    ]
    assert bundle.manifest["data"]["train"]["rows"] == 24
    assert bundle.manifest["recipe"]["lora"]["r"] == bundle.rank == 4
    assert str(tiny_base) in (bundle.path / "card.md").read_text()


def test_it_is_served_on_the_weights_that_it_was_trained_on(bundle: Bundle, tiny_base: Path) -> None:
    served = bundle.resolve_base()
    assert served.parent == bundle.path.parent.parent / "bases" and served != tiny_base
    assert "these 4-bit weights, expanded" in (bundle.path / "card.md").read_text()


def test_plain_lora_trains_on_the_base_as_it_is(tiny_base: Path, tmp_path: Path) -> None:
    config = recipe(tiny_base, tmp_path, max_steps=2)
    plain = dataclasses.replace(config, quantisation=Quantisation(type="none"))
    model = load_quantised(tiny_base, plain)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not any(isinstance(module, Linear4bit) for module in model.modules())
    assert len(trained) == 2 * 7 * 2 and all(".lora_" in name for name in trained)
    made = qlora.fit(prepare(plain), Registry(tmp_path / "adapters"), SILENT)
    assert made.resolve_base() == tiny_base and "in full precision" in (made.path / "card.md").read_text()


def test_plain_peft_loads_it_and_it_acts(bundle: Bundle, tiny_base: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = torch.tensor([bundle.renderer.encode_prompt("Summarise the travel policy.")])
    with torch.no_grad():
        before = base(ids).logits
        model = PeftModel.from_pretrained(base, bundle.path)
        after = model(ids).logits
    saved = load_file(bundle.path / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): p for name, p in model.named_parameters() if ".lora_" in name}
    assert loaded.keys() == saved.keys() and all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert (after - before).abs().max() > 1e-3


def test_the_first_champion_waits_for_a_promotion(tiny_base: Path, tmp_path: Path) -> None:
    """One that holds the registry's lock while the fit ends."""
    registry, begun, seen = Registry(tmp_path / "adapters"), threading.Event(), list[object]()

    def promote() -> None:
        with registry.locked():
            begun.set()
            time.sleep(1)
            seen.append(registry.aliases().get("champion"))
            registry.set_alias("champion", registry.aliases()["latest"])

    other = threading.Thread(target=promote)

    def examine(bundle: Bundle) -> bool:
        other.start()
        return begun.wait()

    qlora.fit(prepare(recipe(tiny_base, tmp_path, max_steps=2)), registry, SILENT, examine)
    other.join()
    assert seen == [None]


class Interrupt(TrainerCallback):
    """Ctrl-C in the fifth step, one after the second checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_an_interrupted_fit_resumes_to_the_same_adapter(
    bundle: Bundle, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, registry = recipe(tiny_base, tmp_path), Registry(tmp_path / "adapters")
    build = qlora.build_trainer

    def interrupted(*args, **kwargs):  # type: ignore[no-untyped-def]
        trainer = build(*args, **kwargs)
        trainer.add_callback(Interrupt())
        return trainer

    monkeypatch.setattr(qlora, "build_trainer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        qlora.fit(prepare(config), registry, SILENT)
    monkeypatch.undo()
    (run,) = (registry.root / ".runs").iterdir()
    assert last_checkpoint(run, SILENT) == run / "checkpoint-4"
    torn = run / "checkpoint-6"  # as a kill in the middle of writing leaves it
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    console = Console(record=True, file=io.StringIO())
    resumed = qlora.fit(prepare(config), registry, console)
    assert "resuming after step 4 of 6" in console.export_text()
    assert resumed.digest == bundle.digest


def test_one_fit_of_a_recipe_at_a_time(tiny_base: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "adapters")
    refused = pytest.raises(OutputLockedError, match="another process is training")
    with run_folder(registry, "0" * 64), refused, run_folder(registry, "0" * 64):
        pass


def test_early_stopping_and_divergence(tiny_base: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "adapters")
    # too small a step to change a loss by more than rounding does
    still = {
        "learning_rate": 1e-9,
        "warmup": 0.9,
    }
    config = recipe(tiny_base, tmp_path, max_steps=40, eval_every=1, early_stopping_patience=2, **still)
    metrics = json.loads((qlora.fit(prepare(config), registry, SILENT).path / "metrics.json").read_text())
    assert metrics["steps"] == metrics["best"]["step"] + 2 < 10
    with pytest.raises(ConfigError, match=r"diverged.*lower \[training\] learning_rate"):
        qlora.fit(prepare(recipe(tiny_base, tmp_path, learning_rate=1e30)), registry, SILENT)


def test_a_base_with_remote_code_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps({**content, "auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    )
    with pytest.raises(AdapterError, match="remote code"):
        prepare(recipe(copy, tmp_path))


def test_a_step_that_overflowed_has_no_loss() -> None:
    log = [
        {
            "step": 1,
            "loss": 0.5,
            "learning_rate": 1e-4,
            "mean_token_accuracy": float("nan"),
            "grad_norm": 1.0,
        },
        {"step": 2, "loss": float("inf"), "learning_rate": 1e-4},
        {"step": 2, "eval_loss": 0.25},
        {"step": 2, "train_runtime": 1.0},
    ]
    assert qlora.history_of(log) == [
        {"step": 1, "loss": 0.5, "learning_rate": 1e-4},
        {"step": 2, "learning_rate": 1e-4},
        {"step": 2, "validation_loss": 0.25},
    ]
