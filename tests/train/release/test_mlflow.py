"""`promote --mlflow`: a bundle in a local MLflow's registry, and back."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import InputError, StorageError
from tests.conftest import ROOT, make_bundle
from train.cli import main
from train.config import Config
from train.release.mlflow import ModelRegistry, figures
from train.release.promotions import history, promote


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else it wants a server
    return (tmp_path / "mlruns").as_uri()


@pytest.fixture
def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


@pytest.fixture
def registry(
    tiny_base: Path, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Registry:
    """Two adapters, of which the second was promoted last."""
    registry = Registry(tmp_path / "adapters")
    for scale in (0.05, 0.06):
        make_bundle(tiny_base, contract, registry.root, scale)
    for bundle in registry.list():
        promote(bundle, registry, [], registry.aliases().get("champion"))
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(registry.root))
    return registry


def champion(client: Any, contract: Contract) -> Any:
    return client.get_model_version_by_alias(contract.name, "champion")


def test_a_version_holds_the_bundle_and_its_digest(
    registry: Registry, uri: str, client: Any, contract: Contract, tmp_path: Path
) -> None:
    first, second = registry.list()
    outside = ModelRegistry(uri)
    assert outside.register(first) == outside.register(first) == f"{contract.name} version 1"
    assert outside.register(second) == f"{contract.name} version 2"
    version = champion(client, contract)
    assert version.tags == {"digest": second.digest, "contract": contract.name, "base": second.base["ref"]}
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["digest"] == second.digest
    folder = client.download_artifacts(version.run_id, "bundle", str(tmp_path))
    assert Bundle.open(folder).digest == second.digest and version.source.endswith("/bundle")


def test_a_rollback_moves_mlflows_champion_too(
    registry: Registry, uri: str, client: Any, contract: Contract
) -> None:
    first, second = registry.list()
    ModelRegistry(uri).register(second)
    done = CliRunner().invoke(main, ["rollback", "--mlflow", uri])
    assert done.exit_code == 0 and f"in MLflow it is {contract.name} version 2" in done.output
    assert champion(client, contract).tags["digest"] == first.digest == registry.aliases()["champion"]


@pytest.fixture
def named(
    request: pytest.FixtureRequest, tiny_base: Path, contract: Contract, registry: Registry
) -> Registry:
    """The champion's and the one's before it have a contract of another name."""
    other = Contract.from_dict({**contract.raw, "name": request.param})
    for scale in (0.07, 0.08):
        bundle = make_bundle(tiny_base, other, registry.root, scale)
        promote(bundle, registry, [], registry.aliases().get("champion"))
    return registry


@pytest.mark.parametrize("named", ["team/requests", "team:requests", "all%", " "], indirect=True)
def test_a_name_that_mlflow_refuses_moves_no_champion(
    named: Registry, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused after the rollback, and a rerun went one further back."""
    monkeypatch.setattr("train.commands.promote.gates", never)
    before, log = named.aliases()["champion"], history(named)
    (other,) = {entry["from"] for entry in log if entry["to"] == before}
    for words in (["rollback"], ["promote", other], ["promote", "champion"]):
        done = CliRunner().invoke(main, [*words, "--mlflow", uri])
        assert done.exit_code == 2 and done.output.count("\n") == 1, done.output
        assert "takes no model that is named like the contract" in done.output
        assert "leave out --mlflow" in done.output
    assert named.aliases()["champion"] == before and history(named) == log


@pytest.mark.parametrize("named", ["Bob's tickets", "a \"b\" or 'c'"], indirect=True)
def test_a_name_may_hold_quotes(named: Registry, uri: str, client: Any) -> None:
    bundle = named.open("champion")
    outside = ModelRegistry(uri)
    outside.check(bundle)
    assert outside.register(bundle) == outside.register(bundle) == f"{bundle.contract.name} version 1"
    assert champion(client, bundle.contract).tags["digest"] == bundle.digest


@pytest.mark.parametrize(("error", "code"), [(StorageError, 75), (InputError, 2), (OSError, 75)])
def test_what_mlflow_refuses_after_the_move_can_be_repeated(
    registry: Registry, uri: str, client: Any, monkeypatch: pytest.MonkeyPatch, error: Any, code: int
) -> None:
    """The error names what registers the champion and moves nothing. Whoever repeats a command that ends in
    75 rolls back no further.
    """

    def refuse(*_: object) -> str:
        raise error("it is away; promote again")

    first, second = registry.list()
    monkeypatch.setattr("train.commands.promote.gates", lambda *_: [])
    for words, wanted, ends in (["rollback"], first, 2), (["promote", second.digest], second, code):
        with monkeypatch.context() as patched:
            patched.setattr(ModelRegistry, "register", refuse)
            done = CliRunner().invoke(main, [*words, "--mlflow", uri])
        assert done.exit_code == ends and registry.aliases()["champion"] == wanted.digest, done.output
        assert f"champion is {wanted.digest[:12]}, only MLflow does not have it as such" in done.output
        assert f"`batch-train promote champion --mlflow {uri}` registers it" in done.output
        assert "promote again" not in done.output
        log = history(registry)
        with monkeypatch.context() as patched:
            patched.setattr("train.commands.promote.gates", never)
            done = CliRunner().invoke(main, ["promote", "champion", "--mlflow", uri])
        assert done.exit_code == 0 and history(registry) == log, done.output
        assert champion(client, wanted.contract).tags["digest"] == wanted.digest


def never(*_: object) -> None:
    raise AssertionError("an engine was asked")


def test_a_run_has_the_cards_figures(trained: Bundle, uri: str, client: Any) -> None:
    ModelRegistry(uri).register(trained)
    metrics = client.get_run(champion(client, trained.contract).run_id).data.metrics
    assert metrics == figures(trained)
    card = (trained.path / "card.md").read_text()
    assert f"validation loss {metrics['validation_loss']:.4f}" in card
    assert f"Trainable parameters: {int(metrics['trainable_parameters']):,} of" in card


def test_the_figures_of_calibrated_scores(tmp_path: Path) -> None:
    fields = {"tier": {"raw": {"ece": 0.5, "brier": 0.5}, "calibrated": {"ece": 0.25, "brier": 0.125}}}
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "calibration.json").write_text(
        json.dumps({"threshold": 0.75, "evidence": {"fields": fields}})
    )
    told = figures(SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]
    assert told == {"triage_threshold": 0.75, "ece.tier": 0.25, "brier.tier": 0.125}


@pytest.mark.parametrize(
    ("uri", "code", "why"),
    [
        ("http://127.0.0.1:9", 75, "promote again when it answers"),
        ("ftp://models", 2, "give another --mlflow"),
        ("", 2, "give another --mlflow"),
        ("file:///proc/nowhere", 2, "give another --mlflow"),
    ],
)
def test_what_does_not_answer_is_told_before_anything_is_promoted(
    uri: str, code: int, why: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = registry.aliases()["champion"]
    for words in (["rollback"], ["promote", registry.list()[0].digest, "--force"]):
        done = CliRunner().invoke(main, [*words, "--mlflow", uri])
        assert done.exit_code == code and why in done.output, done.output
        assert done.output.count("\n") == 1 and registry.aliases()["champion"] == before


def test_a_fit_may_report_to_it(tmp_path: Path) -> None:
    from transformers.integrations import is_mlflow_available

    recipe = (ROOT / "train/mini.toml").read_text().replace("report_to = []", 'report_to = ["mlflow"]')
    (tmp_path / "mini.toml").write_text(recipe)
    assert Config.load(tmp_path / "mini.toml").training.report_to == ("mlflow",) and is_mlflow_available()
