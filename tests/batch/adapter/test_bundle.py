"""The adapter bundle and the registry: what is not exactly what was sealed, or not servable, is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from batch.adapter.base_model import base_digest, resolve_base
from batch.adapter.bundle import MANIFEST, Bundle, seal_bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import AdapterError
from tests.conftest import copy_tokenizer

MODULES = ["q_proj", "v_proj"]
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "target_modules": MODULES,
    "use_dora": False,
}


def weights(prefix: str = "base_model.model.model.layers") -> dict[str, np.ndarray]:
    """A LoRA pair for each of MODULES in both layers of `tiny_base`, filled with ones."""
    outputs = {"q_proj": 64, "v_proj": 32}
    return {
        f"{prefix}.{layer}.self_attn.{module}.lora_{side}.weight": np.ones(
            (4, 64) if side == "A" else (outputs[module], 4), dtype=np.float32
        )
        for layer in (0, 1)
        for module in MODULES
        for side in "AB"
    }


def unsealed(folder: Path, base: Path, contract: Contract, note: str = "a card") -> Path:
    """Everything of a bundle but its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "contract.json").write_text(contract.to_json(), encoding="utf-8")
    (folder / "metrics.json").write_text("{}")
    (folder / "calibration.json").write_text("{}")
    (folder / "card.md").write_text(note)
    copy_tokenizer(base, folder)
    return folder


def facts(base: Path, ref: str | None = None) -> dict[str, Any]:
    return {"base": {"ref": ref or str(base), "revision": None, "sha256": base_digest(base)}, "seed": 3}


def sealed(folder: Path, base: Path, contract: Contract, note: str = "a card") -> Path:
    seal_bundle(unsealed(folder, base, contract, note), facts(base))
    return folder


@pytest.fixture
def folder(tmp_path: Path, tiny_base: Path, contract: Contract) -> Path:
    return sealed(tmp_path / "bundle", tiny_base, contract)


def refusal(path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        Bundle.open(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and caught.value.exit_code == 2
    return message


def test_seal_and_open(tmp_path: Path, tiny_base: Path, contract: Contract) -> None:
    path = unsealed(tmp_path / "bundle", tiny_base, contract)
    digest = seal_bundle(path, facts(tiny_base))
    bundle = Bundle.open(str(path))
    assert bundle.digest == digest and len(digest) == 64 and bundle.rank == 4
    assert bundle.contract == contract and bundle.renderer.contract.fingerprint == contract.fingerprint
    assert bundle.manifest["seed"] == 3 and bundle.base["sha256"] == base_digest(tiny_base)
    assert set(bundle.manifest["files"]) == {file.name for file in path.iterdir()} - {MANIFEST}
    assert bundle.resolve_base() == tiny_base == bundle.resolve_base(str(tiny_base))
    assert seal_bundle(path, facts(tiny_base)) == digest  # sealing again changes nothing


def test_one_changed_byte_in_any_file_is_refused(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.name == MANIFEST:
            continue
        content = file.read_bytes()
        for at in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert f"{file.name} differs from its sha256" in refusal(folder)
        file.write_bytes(content)
    Bundle.open(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        file.unlink()
        wanted = "its manifest is written last" if file.name == MANIFEST else f"{file.name} is missing"
        assert wanted in refusal(folder)
        file.write_bytes(content)
    Bundle.open(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.txt", "notes.txt is not in manifest.json"),
        (".hidden", ".hidden is not in manifest.json"),
        ("adapter_model.bin", "adapter_model.bin; only safetensors"),
        ("ADAPTER_MODEL.BIN", "ADAPTER_MODEL.BIN; only safetensors"),
        ("trainer.pt", "trainer.pt; only safetensors"),
        ("state.pkl", "state.pkl; only safetensors"),
        ("modeling.py", "modeling.py; only safetensors"),
    ],
)
def test_an_extra_file_is_refused(folder: Path, tiny_base: Path, name: str, message: str) -> None:
    (folder / name).write_bytes(b"x")
    assert message in refusal(folder)
    if "only safetensors" in message:  # even where the manifest lists it
        seal_bundle(folder, facts(tiny_base))
        assert message in refusal(folder)


def test_a_folder_in_the_bundle_is_refused(folder: Path) -> None:
    (folder / "checkpoint").mkdir()
    assert "checkpoint is not in manifest.json" in refusal(folder)
    (folder / "checkpoint").rmdir()
    (folder / "card.md").unlink()
    (folder / "card.md").mkdir()
    assert "card.md is missing" in refusal(folder)


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("files"), "has no list of files"),
        (lambda m: m.update(files=[]), "has no list of files"),
        (lambda m: m.pop("base"), "does not say which base model"),
        (lambda m: m["base"].pop("sha256"), "does not say which base model"),
        (lambda m: m["files"].pop("contract.json"), "does not list contract.json"),
        (lambda m: m["files"].pop("card.md"), "card.md is not in"),
        (lambda m: m["files"].update({"../card.md": "0"}), "../card.md is missing"),
        (lambda m: m["files"].update({"card.md": None}), "card.md differs"),
    ],
)
def test_a_wrong_manifest_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edited(folder / MANIFEST, change)
    assert message in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_broken_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert "copy the folder again" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is not LoRA"),
        ({"use_dora": True}, "use_dora is DoRA"),
        ({"bias": "lora_only"}, "bias trains biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save replaces whole modules"),
        ({"r": 0}, "r is outside 1 to 512"),
        ({"r": -1}, "r is outside"),
        ({"r": 513}, "r is outside"),
        ({"r": "16"}, "r is outside"),
        ({"r": None}, "r is outside"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map names remote code"),
        ({"target_modules": ["q_proj"]}, "does not name model.layers.0.self_attn.v_proj, which has weights"),
        ({"target_modules": None}, "target_modules names no module"),
        ({"target_modules": []}, "target_modules names no module"),
        ({"target_modules": "(("}, "is not a regular expression"),
        ({"r": 8}, "self_attn.q_proj is of rank 4, not 8"),
        ({"rank_pattern": {"v_proj": 2}}, "self_attn.v_proj is of rank 4, not 2"),
        ({"rank_pattern": {"v_proj": "2"}}, "rank_pattern holds a rank outside"),
        ({"lora_alpha": float("nan")}, "lora_alpha is not a number"),
        ({"lora_alpha": None}, "lora_alpha is not a number"),
        ({"alpha_pattern": {"v_proj": True}}, "alpha_pattern holds a value"),
        ({"lora_alpha": 1e300}, "the update of model.layers.0.self_attn.q_proj overflows"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights changes the base"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights changes the base"),
        ({"lora_bias": True}, "lora_bias trains biases"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices trains embeddings"),
        ({"target_parameters": ["x"]}, "target_parameters trains bare parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication repeats layers"),
    ],
)
def test_what_vllm_would_ignore_or_refuse_is_refused(
    folder: Path, tiny_base: Path, change: dict[str, Any], message: str
) -> None:
    edited(folder / "adapter_config.json", lambda config: config.update(change))
    seal_bundle(folder, facts(tiny_base))
    assert message in refusal(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 8, b"\xff" * 16, (9).to_bytes(8, "little") + b"not json!", b"PK\x03\x04"]
)
def test_weights_that_are_no_safetensors_are_refused(folder: Path, tiny_base: Path, content: bytes) -> None:
    (folder / "adapter_model.safetensors").write_bytes(content)
    seal_bundle(folder, facts(tiny_base))
    assert "is not a safetensors file" in refusal(folder)


def test_another_base_is_refused(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    bundle = Bundle.open(folder)
    assert bundle.resolve_base(str(other)) == other  # the same weights elsewhere
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(
        AdapterError, match=rf"other is not the base model that adapter {bundle.digest[:12]} was trained on"
    ):
        bundle.resolve_base(str(other))


def test_modules_that_the_base_does_not_have_are_refused(
    tmp_path: Path, tiny_base: Path, contract: Contract
) -> None:
    """vLLM loads such an adapter and leaves the base as it was. Checked against a `resolve_base` without `check_fits`."""
    folder = unsealed(tmp_path / "bundle", tiny_base, contract)
    foreign = weights("base_model.model.transformer.h")
    save_file(foreign, folder / "adapter_model.safetensors")
    seal_bundle(folder, facts(tiny_base))
    with pytest.raises(
        AdapterError,
        match=r"its module transformer\.h\.0\.self_attn\.q_proj is not in the base model .*; it was trained on",
    ):
        Bundle.open(folder).resolve_base()


def test_a_tokenizer_with_remote_code_is_refused(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Checked against a `no_remote_code` that reads config.json alone."""
    for where in (folder, shutil.copytree(tiny_base, tmp_path / "base")):
        edited(
            where / "tokenizer_config.json",
            lambda config: config.update(auto_map={"AutoTokenizer": ["x.Y", None]}),
        )
    seal_bundle(folder, facts(tiny_base))
    assert "tokenizer_config.json names remote code" in refusal(folder)
    with pytest.raises(AdapterError, match=r"tokenizer_config\.json names remote code"):
        resolve_base(str(tmp_path / "base"))


def test_a_base_with_remote_code_or_without_safetensors_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    edited(base / "config.json", lambda config: config.update(auto_map={"AutoModel": "modeling.Model"}))
    with pytest.raises(AdapterError, match="names remote code"):
        resolve_base(str(base))
    edited(base / "config.json", lambda config: config.pop("auto_map"))
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(AdapterError, match="holds no safetensors"):
        resolve_base(str(base))
    (base / "config.json").write_text("{")
    with pytest.raises(AdapterError, match="cannot be read"):
        resolve_base(str(base))


def test_a_relative_base_is_found_above_the_bundle(
    tiny_base: Path, tmp_path: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    shutil.copytree(tiny_base, project / "data/mini-base")
    elsewhere.mkdir()
    path = unsealed(project / "adapters/abc", tiny_base, contract)
    seal_bundle(path, facts(tiny_base, ref="data/mini-base"))
    monkeypatch.chdir(elsewhere)
    assert Bundle.open(path).resolve_base().resolve() == project / "data/mini-base"
    monkeypatch.chdir(project)
    assert Bundle.open("adapters/abc").resolve_base() == Path("data/mini-base")
    with pytest.raises(AdapterError, match=r"no base model at \./nothing; give a model folder or a hub id"):
        resolve_base("./nothing", near=path)


def test_a_hub_base_that_is_not_cached_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BATCH_ROUTE_ONLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        AdapterError, match="base model nobody/nothing at revision abc is not here; set BATCH_ROUTE_ONLINE=1"
    ):
        resolve_base("nobody/nothing", "abc")


@pytest.fixture
def registry(tmp_path: Path, tiny_base: Path, contract: Contract) -> Registry:
    """A registry of two bundles."""
    registry = Registry(tmp_path / "adapters")
    for note in ("first", "second"):
        registry.add(sealed(registry.staging(), tiny_base, contract, note))
    return registry


def test_the_registry_keeps_bundles_by_digest(
    registry: Registry, tiny_base: Path, contract: Contract
) -> None:
    digests = [bundle.digest for bundle in registry.list()]
    assert len(digests) == 2 and digests == sorted(path.name for path in registry.root.iterdir())
    again = registry.staging()
    assert registry.add(sealed(again, tiny_base, contract, "first")).digest in digests
    assert not again.exists() and len(registry.list()) == 2
    with pytest.raises(AdapterError, match=r"it has no manifest\.json"):
        registry.add(unsealed(registry.staging(), tiny_base, contract))
    assert len(registry.list()) == 2


def test_references(registry: Registry, tmp_path: Path) -> None:
    first, second = (bundle.digest for bundle in registry.list())
    with pytest.raises(AdapterError, match=r"no adapter in .*adapters/ yet; run `make train`"):
        registry.resolve("champion")
    registry.set_alias("champion", first)
    registry.set_alias("challenger-2", second)
    registry.set_alias("champion", second)
    assert registry.aliases() == {"champion": second, "challenger-2": second}
    assert registry.resolve("champion") == registry.root / second
    assert registry.resolve(first) == registry.resolve(first[:6]) == registry.root / first
    assert registry.resolve(str(registry.root / first)) == registry.root / first
    with pytest.raises(AdapterError, match=r"no adapter 'champoin'.*did you mean 'champion'"):
        registry.resolve("champoin")
    for reference in (first[:5], "0" * 64, "", str(tmp_path)):
        with pytest.raises(
            AdapterError, match=r"not a bundle directory, digest or alias.*batch-train adapters"
        ):
            registry.resolve(reference)
    for alias in ("Champion", "../x", "", "1st", "a" * 65):
        with pytest.raises(AdapterError, match="use lower-case letters"):
            registry.set_alias(alias, first)


def test_an_ambiguous_digest_is_refused(registry: Registry) -> None:
    first = registry.list()[0].digest
    twin = first[:-1] + ("0" if first[-1] != "0" else "1")
    (registry.root / twin).mkdir()
    with pytest.raises(AdapterError, match=f"2 adapters start with {first[:8]}; give more digits"):
        registry.resolve(first[:8])
    assert registry.resolve(first) == registry.root / first


def test_the_registry_may_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "elsewhere"))
    assert (
        Registry().root == tmp_path / "elsewhere" and Registry().aliases() == {} and Registry().list() == []
    )
    monkeypatch.delenv("BATCH_ROUTE_ADAPTERS")
    assert Registry().root == Path("adapters")


def test_one_damaged_bundle_costs_itself(registry: Registry, tiny_base: Path, contract: Contract) -> None:
    """The others are listed and served; the same bundle added again takes the damaged one's place."""
    first, second = (bundle.digest for bundle in registry.list())
    (registry.root / first / "contract.json").write_text("{")
    assert [bundle.digest for bundle in registry.list()] == [second]
    assert isinstance(registry.survey()[first], AdapterError)
    assert registry.open(second).digest == second
    registry.set_alias("champion", second)
    (registry.root / second / "manifest.json").unlink()
    assert registry.list() == []
    for note in ("first", "second"):
        registry.add(sealed(registry.staging(), tiny_base, contract, note))
    assert [bundle.digest for bundle in registry.list()] == [first, second]


def test_what_is_no_alias_is_none(registry: Registry) -> None:
    first, _ = (bundle.digest for bundle in registry.list())
    registry.set_alias("champion", first)
    aliases = registry.root / "aliases"
    (aliases / "old").mkdir()
    (aliases / "dangling").symlink_to(registry.root / "nowhere")
    (aliases / "outside").write_text("../../home")
    (aliases / "bytes").write_bytes(b"\xff\xfe")
    (aliases / "Readme.txt").write_text("what this is")
    assert registry.aliases() == {"champion": first}
    for name in ("old", "dangling", "outside", "bytes"):
        with pytest.raises(AdapterError, match="is damaged"):
            registry.resolve(name)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\udcff", "../..", "/", ""])
def test_names_that_are_no_adapters(registry: Registry, name: str) -> None:
    """Whatever a row or an option holds: one short line."""
    for entries_only in (False, True):
        with pytest.raises(AdapterError) as refused:
            registry.resolve(name, entries_only)
        assert len(str(refused.value)) < 400


def test_a_row_names_an_entry_and_no_folder(registry: Registry) -> None:
    bundle, _ = registry.list()
    assert registry.open(str(bundle.path)).digest == bundle.digest
    assert registry.open(bundle.digest[:8], entries_only=True).digest == bundle.digest
    for path in (str(bundle.path), str(bundle.path.resolve()), f"./{bundle.path}"):
        with pytest.raises(AdapterError, match="no adapter"):
            registry.open(path, entries_only=True)


def test_an_opened_bundle_is_kept_until_a_file_of_it_changes(registry: Registry) -> None:
    digest, _ = (bundle.digest for bundle in registry.list())
    bundle = registry.open(digest)
    assert registry.open(digest) is bundle
    (bundle.path / "metrics.json").write_text('{"other": 1}')
    with pytest.raises(AdapterError, match="differs from its sha256"):
        registry.open(digest)


@pytest.mark.parametrize(
    "base",
    [{"ref": 7, "revision": None, "sha256": "x"}, {"ref": "", "revision": None, "sha256": None}, {"ref": "x", "revision": [], "sha256": None}],
)  # fmt: skip
def test_a_base_of_the_wrong_type_is_refused(folder: Path, base: dict[str, Any]) -> None:
    edited(folder / MANIFEST, lambda manifest: manifest.update(base=base))
    assert "does not say which base model" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("data", []), ("data", {"train": ["x"]}), ("recipe", "x"), ("versions", 3)]
)
def test_a_manifest_of_other_types_is_refused(folder: Path, key: str, value: Any) -> None:
    edited(folder / MANIFEST, lambda manifest: manifest.update({key: value}))
    assert f"{key} is not a table" in refusal(folder)
