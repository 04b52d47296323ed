"""A fit that is cut off after the training, or cannot be written: nothing is trained twice, nothing is left."""

import io
import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from batch.adapter.base_model import base_digest
from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import AdapterError, EngineError, InputError, OutputLockedError
from tests.conftest import make_bundle
from tests.train.fit.test_qlora import recipe
from train.config import Config
from train.fit import places, qlora
from train.fit.inputs import prepare
from train.fit.places import check_bases
from train.fit.runs import already_fitted, finished, held, note_finished, unchecked
from train.fit.serving import expansion_of
from train.release.gates import Gate
from train.review import improve

SILENT = Console(quiet=True)
RUN = "f" * 64


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "adapters")


@pytest.fixture
def inputs(tiny_base: Path, tmp_path: Path) -> Any:
    """As far as they are read beside the training."""
    renderer = SimpleNamespace(style=SimpleNamespace(folded=False))
    config = SimpleNamespace(path=tmp_path / "recipe.toml")
    return SimpleNamespace(renderer=renderer, fingerprint=RUN, config=config, splits={"train": []})


@pytest.fixture
def trained(
    tiny_base: Path, contract: Contract, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> list[Path]:
    """The runs that were trained: to a bundle, without a training."""
    runs = []

    def make(inputs: Any, run: Path, registry: Registry, console: Console) -> Bundle:
        runs.append(run)
        bundle = make_bundle(tiny_base, contract, registry.root)
        note_finished(run, bundle)
        return bundle

    monkeypatch.setattr(qlora, "_made", make)
    return runs


def test_a_fit_that_is_cut_off_in_the_checks_goes_on_there(
    inputs: Any, registry: Registry, trained: list[Path]
) -> None:
    """It said "run again to resume", and trained again from the beginning."""

    def interrupted(bundle: Bundle) -> bool:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            qlora.fit(inputs, registry, SILENT, interrupted)
        assert list(registry.aliases()) == ["latest"]
    bundle = qlora.fit(inputs, registry, SILENT, lambda bundle: True)
    assert len(trained) == 1 and not trained[0].exists()
    assert registry.aliases() == {"latest": bundle.digest, "champion": bundle.digest}


def test_a_fit_that_is_not_sound_is_checked_again_and_not_trained_again(
    inputs: Any, registry: Registry, trained: list[Path]
) -> None:
    """Training again gives the same adapter; `loop` took it as it was, though its checks had failed."""
    for _ in range(2):
        with pytest.raises(AdapterError, match="fails the doctor's checks"):
            qlora.fit(inputs, registry, SILENT, lambda bundle: False)
        assert len(trained) == 1 and list(registry.aliases()) == ["latest"]
    assert unchecked(registry, inputs.fingerprint)
    bundle = qlora.fit(inputs, registry, SILENT, lambda bundle: True)
    assert len(trained) == 1 and not unchecked(registry, inputs.fingerprint)
    assert registry.aliases()["champion"] == bundle.digest


def test_an_improvement_that_is_cut_off_behind_the_fit_goes_on_there(
    inputs: Any, registry: Registry, trained: list[Path], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine failed in the gates (75): run again, as it is told to be, it trained everything again."""
    inputs.facts = {"base": {"ref": str(tiny_base), "revision": None, "sha256": base_digest(tiny_base)}}
    config: Any = SimpleNamespace(find=Path, data=SimpleNamespace(train="train.jsonl", test=None))
    gate, out = Gate("regression", True, "5 of 5 rows right"), io.StringIO()

    def broken(*_: object) -> list[Gate]:
        raise EngineError("the engine failed; run again to resume")

    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(registry.root))
    monkeypatch.setattr(improve, "prepare", lambda _: inputs)
    monkeypatch.setattr(improve, "sound", lambda *_: True)
    monkeypatch.setattr(improve, "gates", broken)
    with pytest.raises(EngineError):
        improve.fit_and_compare(config, SILENT, [], promote=True)
    monkeypatch.setattr(improve, "gates", lambda *_: [gate])
    improve.fit_and_compare(config, Console(file=out), [], promote=True)
    assert len(trained) == 1 and len(registry.list()) == 1
    (bundle,) = registry.list()
    assert out.getvalue().startswith(f"fitted already: {bundle.digest[:12]}\n")
    inputs.facts = {"base": {**inputs.facts["base"], "sha256": "0" * 64}}
    assert already_fitted(registry, inputs) is None


def test_of_an_adapter_and_its_calibrated_copy_the_one_in_use_is_taken(
    inputs: Any, tiny_base: Path, contract: Contract, registry: Registry
) -> None:
    """It was the one whose digest came first."""
    inputs.facts = {"base": {"ref": str(tiny_base), "revision": None, "sha256": base_digest(tiny_base)}}
    made = [make_bundle(tiny_base, contract, registry.root, scale).digest for scale in (0.05, 0.06, 0.07)]
    for latest, champion in itertools.permutations(made, 2):
        (registry.root / "aliases/champion").unlink(missing_ok=True)
        registry.set_alias("latest", latest)
        found = already_fitted(registry, inputs)
        assert found and found.digest == latest
        registry.set_alias("champion", champion)
        found = already_fitted(registry, inputs)
        assert found and found.digest == champion


def test_an_adapter_that_was_damaged_since_is_made_again(
    tiny_base: Path, contract: Contract, registry: Registry, tmp_path: Path
) -> None:
    bundle = make_bundle(tiny_base, contract, registry.root)
    assert finished(tmp_path, registry, SILENT) is None
    note_finished(tmp_path, bundle)
    found = finished(tmp_path, registry, SILENT)
    assert found is not None and found.digest == bundle.digest
    (bundle.path / "metrics.json").write_text("damaged")
    assert finished(tmp_path, registry, SILENT) is None
    shutil.rmtree(bundle.path)
    assert finished(tmp_path, registry, SILENT) is None


def test_what_cannot_be_removed_does_not_cost_the_result(registry: Registry, tmp_path: Path) -> None:
    """The adapters of all folds were fitted, and nothing was told of them; a lock file that is open in the
    folder prevents it over NFS.
    """
    (elsewhere := tmp_path / "elsewhere").mkdir()
    link = tmp_path / "work"
    link.symlink_to(elsewhere)  # which is never removed
    with held(link) as folder:
        assert not list(folder.iterdir())
        with pytest.raises(OutputLockedError, match=str(link)), held(link):
            pass
        assert folder.is_dir()
    with held(tmp_path / "new") as folder:
        (folder / "file").write_text("a")
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), held(tmp_path / "new") as folder:
        raise KeyboardInterrupt
    assert folder.is_dir()  # to be resumed


def test_a_champion_whose_folder_is_gone_is_none(
    inputs: Any, registry: Registry, trained: list[Path]
) -> None:
    registry.set_alias("champion", "0" * 64)
    bundle = qlora.fit(inputs, registry, SILENT)
    assert registry.aliases()["champion"] == bundle.digest
    other = registry.root / ("1" * 64)
    other.mkdir()
    registry.set_alias("champion", other.name)
    qlora.fit(inputs, registry, SILENT)
    assert registry.aliases()["champion"] == other.name


def test_what_fails_after_the_training_leaves_no_half_of_a_bundle(
    inputs: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AdapterError("no base that serves")

    monkeypatch.setattr(qlora, "train", lambda *_: None)
    monkeypatch.setattr(qlora, "write_bundle", lambda inputs, trainer, folder: (folder / "a").write_text("a"))
    monkeypatch.setattr(qlora, "_calibrate", refuse)
    with pytest.raises(AdapterError, match="no base that serves"):
        qlora.fit(inputs, registry, SILENT)
    assert [path.name for path in registry.root.iterdir()] == [".runs"]


def test_a_place_that_cannot_be_written_is_refused_before_the_training(
    tiny_base: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(tiny_base, tmp_path)
    with pytest.raises(InputError, match=r"the registry /proc/adapters/: .*BATCH_ROUTE_ADAPTERS"):
        prepare(config, Registry("/proc/adapters"))
    monkeypatch.setenv("BATCH_ROUTE_BASES", "/proc/bases")
    with pytest.raises(InputError, match=r"the base that serves into /proc/bases/: .*BATCH_ROUTE_BASES"):
        prepare(config, registry)
    original = config.path.read_text() + '\n[quantisation]\nserve = "original"\n'
    config.path.write_text(original)
    assert prepare(Config.load(config.path), registry)
    assert not registry.root.exists()


def test_a_base_that_is_made_already_may_lie_where_nothing_can_be_written(
    tiny_base: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InputError("read-only")

    quantisation = recipe(tiny_base, tmp_path).quantisation
    monkeypatch.setattr(places, "check_folder", refuse)
    with pytest.raises(InputError, match="read-only"):
        check_bases(registry, "0" * 64, quantisation)
    (tmp_path / "bases" / expansion_of("0" * 64, quantisation).key).mkdir(parents=True)
    check_bases(registry, "0" * 64, quantisation)
