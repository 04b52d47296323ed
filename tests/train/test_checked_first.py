"""What `import` and `loop` can refuse, they refuse before an engine runs or anything is trained."""

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batch.adapter.bundle import seal_bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import AdapterError, InputError
from batch.reporting.console import PlainConsole
from tests.conftest import ROOT, make_bundle
from tests.train.release.test_gates import calibrated
from train.cli import main
from train.config import Config
from train.dataset import file_facts, load_rows
from train.review.improve import fit_and_compare

TEST = "data/v1/test.jsonl"


def refused(*words: str | Path) -> str:
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 2 and len(result.output.splitlines()) == 1, result.output
    return result.output


def never(*arguments: Any, **settings: Any) -> None:
    raise AssertionError("work was begun")


@pytest.fixture
def recipes(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two sound ones; whoever would fit them fails."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "adapters"))
    monkeypatch.setattr("train.commands.loop.fit_versions", never)
    text = (ROOT / "train/mini.toml").read_text().replace('"data/mini-base"', f'"{tiny_base}"')
    made = tmp_path / "a.toml", tmp_path / "b.toml"
    for path in made:
        path.write_text(text)
    return made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tfidf", TEST, "--id-column", "key"], "--id-column is that of the --from-scored output"),
        (["base", TEST, "--train", "data/v1/train.jsonl"], "--train is what baselines learn from"),
        (
            ["tfidf", TEST, "--attack", "--train", "data/v1/train.jsonl"],
            "--train is what baselines learn from",
        ),
        (
            ["tfidf", TEST, "--cross-validate", "2", "--train", "x.jsonl"],
            "--train is what baselines learn from",
        ),
        (["tfidf", TEST, "--base-model", "nosuch"], "--base-model is that of an adapter or of `base`"),
        (["tfidf", TEST, "--cross-validate", "2", "--base-model", "x"], "--base-model is that of an adapter"),
        (
            ["tfidf", TEST, "--cross-validate", "2", "--from-scored", "x"],
            "--cross-validate trains models of its own",
        ),
        (["base", TEST, "--attack", "--from-scored", "x"], "--attack asks adapters themselves"),
        ([",", TEST], "no adapter to judge"),
    ],
)
def test_an_option_of_eval_that_would_change_nothing(words: list[str], message: str) -> None:
    assert message in refused("eval", *words)


def test_a_revision_of_a_folder(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.commands.import_adapter.import_folder", never)
    line = ("import", "folder", "--contract", "c.toml", "--base", tiny_base, "--revision", "main")
    assert f"--revision is of a hub id, and {tiny_base} is a folder; leave it out" in refused(*line)


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "base", TEST, "--contract", ""),
        ("eval", "tfidf", TEST, "--train", ""),
        ("doctor", "champion", "--base-model", ""),
        ("export", "champion", "x", "--merge", "--base-model", ""),
        ("report", "champion", "--against", ""),
        ("review", "x.parquet", "--labels", "l.jsonl", "--reviewer", ""),
        ("candidates", "x.parquet", "--contract", ""),
        ("import", "x", "--contract", "c.toml", "--base", "b", "--revision", ""),
    ],
)
def test_an_option_that_is_empty(words: tuple[str, ...]) -> None:
    """As an unset variable is: it is no default."""
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "it is empty (is a variable unset?)" in result.output


@pytest.mark.parametrize("alias", ["My Adapter", "-x", "a" * 65])
def test_the_alias_of_an_import(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.commands.import_adapter.import_folder", never)
    contract = ROOT / "data/contract.toml"
    said = refused("import", "folder", "--contract", contract, "--base", "base", "--alias", alias)
    assert said.startswith(f"Error: alias {alias!r}: use lower-case letters")


@pytest.mark.parametrize(
    ("alias", "message"),
    [
        (
            "champion",
            "alias champion: an adapter becomes the champion through the gates; choose another alias",
        ),
        ("base", "alias base: `eval` takes it for a baseline; choose another alias"),
        ("tfidf", "alias tfidf: `eval` takes it for a baseline; choose another alias"),
    ],
)
def test_an_alias_that_is_not_to_be_chosen(
    recipes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, alias: str, message: str
) -> None:
    monkeypatch.setattr("train.commands.import_adapter.import_folder", never)
    first, second = recipes
    imported = (
        "import",
        "folder",
        "--contract",
        ROOT / "data/contract.toml",
        "--base",
        "base",
        "--alias",
        alias,
    )
    assert message in refused(*imported)
    assert message in refused("loop", f"{alias}={first},v2={second}", TEST)


def test_the_names_of_versions(recipes: tuple[Path, Path]) -> None:
    first, second = recipes
    assert "alias 'V2': use lower-case letters" in refused("loop", f"v1={first},V2={second}", TEST)
    assert "alias latest: each fit moves it" in refused("loop", f"v1={first},latest={second}", TEST)
    assert "each with its own name" in refused("loop", f"v1={first},v1={second},v2={second}", TEST)


def test_the_recipe_and_the_rows_of_every_version(recipes: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = recipes
    versions = f"v1={first},v2={second}"
    assert "no dataset at nowhere.jsonl" in refused("loop", versions, TEST, "nowhere.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"id": "a"}\n')
    assert "bad.jsonl:1: missing key 'request'" in refused("loop", versions, TEST, tmp_path / "bad.jsonl")
    text = second.read_text()
    second.write_text(text.replace('"data/v1/train.jsonl"', '"data/v1/none.jsonl"'))
    assert "no file data/v1/none.jsonl" in refused("loop", versions, TEST)
    second.write_text(text.replace('"data/v1/train.jsonl"', '"data/v1/test.jsonl"'))
    assert "data/v1/test.jsonl:1: id" in refused("loop", versions, TEST)


def test_versions_with_other_labels(
    recipes: tuple[Path, Path], contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were fitted, and the comparison was "a bug"."""
    other = {
        "name": "t",
        "prompt": {"system": "x {fields}"},
        "fields": [{"name": "queue", "type": "boolean"}],
    }
    contracts = iter([contract, Contract.from_dict(other)])
    monkeypatch.setattr("train.commands.loop._check", lambda recipe, datasets: next(contracts))
    told = refused("loop", f"v1={recipes[0]},v2={recipes[1]}", TEST)
    assert (
        told
        == "Error: v2 has other fields or labels than v1, so nothing can be compared; give both the same\n"
    )


def test_a_promotion_that_could_not_be_logged(
    recipes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.review.improve.fit", never)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters/promotions.jsonl").write_text("damaged\n")
    with pytest.raises(AdapterError, match=r"promotions\.jsonl:1: is not a promotion"):
        fit_and_compare(Config.load(recipes[0]), PlainConsole(), [], promote=True)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("another task", "has other fields or labels, so nothing can be compared"),
        ("gone", "the champion cannot be asked: "),
        ("damaged", "the champion cannot be asked: "),
        (
            "threshold",
            "a target error of 0.02, this adapter has none; name 200 labelled rows or more as .data. "
            "calibration in the recipe, with .calibration. target_error = 0.02; --no-promote only fits it",
        ),
        ("taught to the test", "4 of 4 rows of .*test.jsonl are like rows .* as .data. test in the recipe"),
        ("policy", "the policy table gives"),
    ],
)
def test_a_champion_that_a_fit_cannot_be_compared_with(
    recipes: tuple[Path, Path],
    tiny_base: Path,
    contract: Contract,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    message: str,
) -> None:
    """It was said after the fit, which takes hours, and again after each rerun."""
    registry, out = Registry(tmp_path / "adapters"), io.StringIO()
    if fault == "another task":
        contract = Contract.load(ROOT / "tests/data/triage/contract.toml")
    elif fault == "policy":
        table = [{"when": {}, "then": {"risk": "low"}}]
        contract = Contract.from_dict({**contract.raw, "policy": {**contract.raw["policy"], "table": table}})
    champion = make_bundle(tiny_base, contract, registry.root)
    if fault == "threshold":
        champion = calibrated(champion, registry.root, 0.02)
    elif fault == "taught to the test":
        rows = {"train": file_facts(ROOT / TEST, TEST, load_rows(ROOT / TEST, contract))}
        seal_bundle(
            champion.path, {k: v for k, v in champion.manifest.items() if k != "files"} | {"data": rows}
        )
    elif fault == "gone":
        shutil.rmtree(champion.path)
    elif fault == "damaged":
        (champion.path / "metrics.json").write_text("damaged")
    registry.set_alias("champion", champion.digest)

    config, console = Config.load(recipes[0]), PlainConsole(file=out, width=400)
    monkeypatch.setattr("train.review.improve.fit", never)
    if fault != "policy":  # the gates ask both for their answers alone
        with pytest.raises(AdapterError, match=message):
            fit_and_compare(config, console, [], promote=True)
    with pytest.raises(AssertionError, match="work was begun"):
        fit_and_compare(config, console, [], promote=False)
    assert (message in out.getvalue()) is (fault not in ("threshold", "taught to the test"))


def test_a_recipe_with_rows_to_calibrate_on_keeps_the_champions_threshold(
    recipes: tuple[Path, Path],
    tiny_base: Path,
    contract: Contract,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it did, `improve` was refused, though its target is stricter."""
    registry, config = Registry(tmp_path / "adapters"), Config.load(recipes[0])
    champion = calibrated(make_bundle(tiny_base, contract, registry.root), registry.root, 0.05)
    registry.set_alias("champion", champion.digest)
    monkeypatch.setattr("train.review.improve.fit", never)
    with pytest.raises(AdapterError, match="this adapter has none; name 200"):
        fit_and_compare(config, PlainConsole(), [], promote=True)
    data = dataclasses.replace(config.data, calibration="data/written/calibration.jsonl")
    with pytest.raises(AssertionError, match="work was begun"):
        fit_and_compare(dataclasses.replace(config, data=data), PlainConsole(), [], promote=True)


def test_what_is_sound_goes_on(recipes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*arguments: Any) -> None:
        raise InputError("begun")

    monkeypatch.setattr("train.commands.loop.fit_versions", begun)
    assert refused("loop", f"v1={recipes[0]},v2={recipes[1]}", TEST) == "Error: begun\n"
