"""What the tests share: a tiny random base model with a real tokenizer and chat template, and the shipped contract."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from filelock import FileLock

from batch.adapter.base_model import base_digest
from batch.adapter.bundle import Bundle, seal_bundle
from batch.adapter.registry import Registry
from batch.adapter.renderer import TOKENIZER_FILES
from batch.contract.contract import Contract
from batch.storage import guard, remote
from tests.servers import Azurite, Weed

ROOT = Path(__file__).parents[1]
CONTROL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLIT = (  # Qwen's pre-tokenisation
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="session")
def contract() -> Contract:
    return Contract.load(ROOT / "data/contract.toml")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_base(tmp_path_factory.mktemp("tiny-base"))


def build_tiny_base(folder: Path) -> Path:
    """A model folder: random two-layer Qwen3 of hidden size 64, byte-level BPE of 1,024 tokens, ChatML template."""
    import torch
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024 - len(CONTROL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    corpus = (ROOT / "data/contract.toml", *sorted((ROOT / "data/v1").glob("*.jsonl")))
    tokenizer.train_from_iterator([path.read_text(encoding="utf-8") for path in corpus], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 32768}))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)

    torch.manual_seed(0)
    ends = {
        name: tokenizer.token_to_id(f"<|{token}|>")
        for name, token in (("eos_token_id", "im_end"), ("pad_token_id", "endoftext"))
    }
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the least that vLLM serves on a CPU
        tie_word_embeddings=True,
        bos_token_id=None,
        **ends,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_base: Path, contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a random, acting rank-4 adapter for `tiny_base`: the real format without the minutes of a fit."""
    return make_bundle(tiny_base, contract, tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="session")
def trained_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with the adapter of v1's 24 examples, trained by the shipped recipe, as `make train` does it. Where several
    processes share the tests, one of them trains it and the others wait."""
    common = tmp_path_factory.getbasetemp()
    common = common.parent if "PYTEST_XDIST_WORKER" in os.environ else common
    folder = common / "trained/adapters"
    environment = {**os.environ, "BATCH_ROUTE_ADAPTERS": str(folder)}
    line = [str(Path(sys.executable).parent / "batch-train"), "fit", "train/mini.toml"]
    with FileLock(common / "trained.lock"):
        if not (folder / "aliases/champion").exists():
            done = subprocess.run(
                line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def trained(trained_registry: Path) -> Bundle:
    return Bundle.open(Registry(trained_registry).resolve("champion"))


def copy_tokenizer(base: Path, folder: Path) -> None:
    """The tokenizer and the chat template of `base`, as they are."""
    for name in TOKENIZER_FILES:
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def make_bundle(base: Path, contract: Contract, root: Path, scale: float = 0.05) -> Bundle:
    """Seal a random LoRA adapter as a bundle in the registry at `root`; `scale` 0 makes one that does nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules=linear, task_type="CAUSAL_LM"),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale) if scale else torch.nn.init.zeros_(weight)
    registry = Registry(root)
    folder = registry.staging()
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    copy_tokenizer(base, folder)
    (folder / "contract.json").write_text(contract.to_json())
    (folder / "metrics.json").write_text("{}")
    (folder / "calibration.json").write_text('{"calibrated": false}')
    seal_bundle(
        folder, {"base": {"ref": str(base), "revision": None, "sha256": base_digest(base)}, "rank": 4}
    )
    return registry.add(folder)


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """A server that speaks S3."""
    with Weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """A server that speaks Azure's."""
    if not shutil.which("npm"):
        pytest.skip("Azurite is installed by npm")
    with Azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(params=["weed", "azurite"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket, ``s3://…`` and ``az://…``, which the environment says how to reach."""
    server: Weed | Azurite = request.getfixturevalue(request.param)
    name = f"b-{secrets.token_hex(8)}"
    server.make(name)
    with reaching(server.environment, tmp_path, monkeypatch):
        yield f"{server.scheme}://{name}"


@pytest.fixture
def s3_bucket(weed: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"b-{secrets.token_hex(8)}"
    weed.make(name)
    with reaching(weed.environment, tmp_path, monkeypatch):
        yield f"s3://{name}"


@contextlib.contextmanager
def reaching(environment: Mapping[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of this process and of those that it starts: they read the environment once."""
    for variable, value in {**environment, "XDG_CACHE_HOME": str(cache / "cache")}.items():
        monkeypatch.setenv(variable, value)
    remote.client.cache_clear()
    guard.stop()
    yield
    remote.client.cache_clear()
    guard.stop()
