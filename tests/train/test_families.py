"""Bases of other families through fit, doctor and the engine: answers equal to PEFT's, or refused by `plan` with the reason.

A run of the tests takes one of them (`SHORT`); `make families` takes all and prints a line for each, as docs/bases.md
has it.
"""

import dataclasses
import io
import json
import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console

from batch.adapter.registry import Registry
from batch.engine.supervisor import Supervisor
from batch.errors import AdapterError
from batch.scoring.adapters import engine_spec, lane_of, spec_of
from batch.scoring.router import Requests, Router
from tests.families import ALL, FAMILIES, base_model
from train.config import Config
from train.doctor import doctor
from train.doctor.proof import REQUESTS, prove
from train.doctor.served import answers
from train.fit import qlora
from train.fit.inputs import prepare
from train.fit.plan import make_plan

ROOT = Path(__file__).parents[2]
SHORT = ["phi3"]  # fused layers and SentencePiece; the shipped base is Qwen 3's kind, with byte-level BPE
SERVED = [name for name, family in FAMILIES.items() if not family.refused]
CHOSEN = SERVED if ALL else SHORT
EXACT = (
    1e-3  # of a value's probability, both sides in float32; far from the likeliest token nats differ by more
)
# Four steps on random weights teach no form: these checks judge what was learnt, not what is served.
LEARNING = {"end of turn", "three arms", "4-bit skew"}


def recipe(base: Path, folder: Path) -> Config:
    path = folder / "recipe.toml"
    path.write_text(
        f'[base]\nmodel = "{base}"\n[data]\ncontract = "{ROOT}/data/contract.toml"\n'
        f'train = "{ROOT}/data/v1/train.jsonl"\nvalidation = "{ROOT}/data/v1/validation.jsonl"\n'
        "[lora]\nr = 4\n[training]\nmax_steps = 4\nbatch_size = 4\neval_every = 2\nlearning_rate = 0.02\n"
    )
    return Config.load(path)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_family_goes_through_fit_doctor_and_engine(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_model(FAMILIES[name], tmp_path / "base")
    config, registry = recipe(base, tmp_path), Registry(tmp_path / "adapters")
    began = time.monotonic()
    assert make_plan(config).trainable > 0
    bundle = qlora.fit(prepare(config), registry, Console(file=io.StringIO()))
    spec = dataclasses.replace(engine_spec(base, [bundle]), dtype="float32", max_num_seqs=16)
    with Supervisor(spec) as engine:
        engine.load(adapter := spec_of(bundle))
        completions = answers(engine, adapter.name, bundle.renderer.encode_requests(REQUESTS))
        routed = list(Router(engine).route([Requests.to(lane_of(bundle), REQUESTS)]))
        checks = doctor(bundle, engine=engine)
    proof = prove(bundle, base, REQUESTS, completions)
    with capsys.disabled():
        print(
            f"\n{name}: {proof}, a token's log-probability by {proof.logprob:.1e}; {time.monotonic() - began:.0f} s"
        )
    assert proof.answers == len(REQUESTS) and proof.differs < EXACT and proof.logprob < 0.05
    assert all(row.error_code is None for row in routed[0])
    assert not [str(check) for check in checks if not check.ok and check.name not in LEARNING]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.refused])
def test_a_family_that_is_not_served_is_refused_by_plan_and_fit(name: str, tmp_path: Path) -> None:
    config = recipe(base_model(FAMILIES[name], tmp_path / "base"), tmp_path)
    for refuse in (make_plan, prepare):
        with pytest.raises(AdapterError, match=FAMILIES[name].refused or "") as refused:
            refuse(config)
        assert refused.value.exit_code == 2


def changed(base: Path, **values: object) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"quantised already \(awq\)"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            r"already \(bitsandbytes\)",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantised already \(fp8\)"),
        ({"max_position_embeddings": 900}, "the base holds 900; "),
        (
            {"max_position_embeddings": 400, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "the base holds 800",
        ),
        ({"architectures": ["FalconForCausalLM"]}, "vLLM serves no LoRA adapter on FalconForCausalLM"),
    ],
)
def test_a_base_is_refused_before_the_training(
    tiny_base: Path, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    changed(base, **values)
    config = recipe(base, tmp_path)
    for refuse in (make_plan, prepare):
        with pytest.raises(AdapterError, match=message):
            refuse(config)


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_a_token_beyond_the_embedding_is_refused(tiny_base: Path, tmp_path: Path, name: str) -> None:
    """Fine-tuned folders often have a [PAD] that the embedding was never widened for: an IndexError in the first batch."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    added = {**tokenizer["added_tokens"][0], "id": 1024, "content": "[NEW]"}
    tokenizer["added_tokens"].append(added)
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, name: "[NEW]"}))
    if name == "eos_token":
        template = (base / "chat_template.jinja").read_text()
        (base / "chat_template.jinja").write_text(template.replace("<|im_end|>", "[NEW]"))
    for refuse in (make_plan, prepare):
        with pytest.raises(AdapterError, match="has a token 1024, its embedding only 1024 rows"):
            refuse(recipe(base, tmp_path))
