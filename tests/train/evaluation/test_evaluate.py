"""Evaluation: intervals against published values, counts and misses, side by side, JSON."""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from rich.console import Console

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import AdapterError, DatasetError
from batch.job import Options
from batch.reporting.observer import Observer
from batch.run import run
from tests.conftest import make_bundle
from tests.train.fit.test_qlora import SILENT, recipe
from train.cli import main
from train.dataset import Row, load_rows
from train.evaluation.ask import candidate, candidates, serve
from train.evaluation.evaluate import Evaluation, compare, comparisons, evaluate
from train.evaluation.from_scored import judge_scored, read_scored
from train.evaluation.statistics import Proportion
from train.evaluation.tables import as_json, comparison_table, measures_table, show
from train.files import write_json
from train.fit import qlora
from train.fit.inputs import prepare

ROOT = Path(__file__).parents[3]


@dataclasses.dataclass
class Answer:
    answer: dict[str, Any] | None
    error_code: str | None = None


@pytest.fixture
def rows(contract: Contract) -> list[Row]:
    return load_rows(ROOT / "data/v1/test.jsonl", contract)


@pytest.fixture
def bias(rows: list[Row], contract: Contract) -> Evaluation:
    """The first experiment's result: one platform wrong of four rows."""
    answers = [Answer(dict(row.answer)) for row in rows]
    answers[2].answer = {**rows[2].answer, "recommended_platform": "Databricks app + Salesforce integration"}
    return evaluate(rows, answers, contract, "v1", "test")


def test_the_first_experiments_nineteen_of_twenty(bias: Evaluation) -> None:
    counts = {name: (p.count, p.of) for name, p in bias.measures.items()}
    assert counts == {
        "parsed": (4, 4),
        "schema-valid": (4, 4),
        "tier": (4, 4),
        "risk": (4, 4),
        "recommended_platform": (3, 4),
        "needs_review": (4, 4),
        "all fields right": (3, 4),
        "field checks": (19, 20),
    }
    (miss,) = bias.misses
    assert (miss.id, miss.field, miss.gold) == ("v1-031", "recommended_platform", "Databricks app")


def test_an_error_row_is_wrong_in_every_field(rows: list[Row], contract: Contract) -> None:
    answers = [Answer(dict(row.answer)) for row in rows[1:]]
    result = evaluate(rows, [Answer(None, "truncated"), *answers], contract, "v1", "test")
    assert {p.count for name, p in result.measures.items() if name != "field checks"} == {3}
    assert [miss.error for miss in result.misses] == ["truncated"] * 4


def test_an_answer_for_each_row(rows: list[Row], contract: Contract) -> None:
    with pytest.raises(ValueError, match="shorter"):
        evaluate(rows, [Answer(dict(rows[0].answer))], contract, "v1", "test")


def test_side_by_side_and_json(bias: Evaluation, rows: list[Row], contract: Contract, tmp_path: Path) -> None:
    perfect = evaluate(rows, [Answer(dict(row.answer)) for row in rows], contract, "champion", "test")
    console = Console(file=io.StringIO(), record=True, width=200)
    show([bias, perfect], console)
    text = console.export_text()
    assert (
        "not significant; about" in text and "macro-F1 tier" in text and "let through, needs_review" in text
    )
    assert "3/4  0.30 to 0.95" in text and "4/4  0.51 to 1.00" in text and "19/20" in text
    assert "v1 on test: wrong" in text and "champion on test: wrong" not in text
    write_json(tmp_path / "eval.json", as_json([bias, perfect]))
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["evaluations"][0]["measures"]["recommended_platform"]["share"] == 0.75
    cells = content["evaluations"][0]["confusion"]["recommended_platform"]
    wrong = {"gold": "Databricks app", "answered": "Databricks app + Salesforce integration", "rows": 1}
    assert wrong in cells and sum(cell["rows"] for cell in cells) == 4
    assert content["comparisons"][0]["measures"]["all fields right"]["only_second_right"] == 1
    assert content["evaluations"][0]["misses"][0]["predicted"] == "Databricks app + Salesforce integration"


@pytest.mark.parametrize("names", [["tfidf", "base", "champion"], ["tfidf", "embedding", "base", "champion"]])
def test_names_stay_whole_at_80_columns(names: list[str], rows: list[Row], contract: Contract) -> None:
    gold = [Answer(dict(row.answer)) for row in rows]
    wrong = [Answer(None, "truncated") for _ in rows]
    group = [evaluate(rows, wrong if name == "base" else gold, contract, name, "test") for name in names]
    console = Console(file=io.StringIO(), record=True, width=80)
    console.print(measures_table(group))
    console.print(comparison_table(comparisons(group)))
    text = console.export_text()
    assert "…" not in text and "recommended_platform" in text
    assert "base : champion" in text and "significant" in text and max(map(len, text.splitlines())) <= 80


def test_a_request_is_no_markup(rows: list[Row], contract: Contract) -> None:
    row = dataclasses.replace(rows[0], request="[bold]x[/nonsense]")
    console = Console(file=io.StringIO(), record=True, width=200)
    show([evaluate([row], [Answer(None, "truncated")], contract, "a", "d")], console)
    assert "[bold]x[/nonsense]" in console.export_text()


def test_layers_and_what_is_let_through(rows: list[Row], contract: Contract) -> None:
    """v1's test rows: three are medium or low, one is high; three need review. An error row lets nothing through."""
    high = next(i for i, row in enumerate(rows) if row.answer["risk"] == "high")
    review = next(i for i, row in enumerate(rows) if row.answer["needs_review"] and i != high)
    answers = [Answer(dict(row.answer)) for row in rows]
    answers[high].answer = {**rows[high].answer, "risk": "medium"}
    answers[review].answer = {**rows[review].answer, "needs_review": False}
    result = evaluate(rows, answers, contract, "v1", "test")
    needing = sum(row.answer["needs_review"] for row in rows)
    assert {name: (p.count, p.of) for name, p in result.under_escalation.items()} == {
        "risk": (1, 1),
        "needs_review": (1, needing),
    }
    assert result.confusion["risk"]["high", "medium"] == 1 and result.f1["risk"] < result.f1["tier"] == 1
    answers[high] = Answer(None, "truncated")
    result = evaluate(rows, answers, contract, "v1", "test")
    assert result.under_escalation["risk"] == Proportion(0, 1) and result.measures["parsed"] == Proportion(
        3, 4
    )
    # parsed, not legal, the other fields right
    answers[high] = Answer({**rows[high].answer, "tier": "Trusted Nobody"})
    result = evaluate(rows, answers, contract, "v1", "test")
    assert [result.measures[name].count for name in ("parsed", "schema-valid", "tier", "risk")] == [
        4,
        3,
        3,
        4,
    ]


def test_two_adapters_are_compared_row_by_row(bias: Evaluation, rows: list[Row], contract: Contract) -> None:
    perfect = evaluate(rows, [Answer(dict(row.answer)) for row in rows], contract, "v2", "test")
    pair = compare(bias, perfect)
    assert (pair.tests["all fields right"].first, pair.tests["all fields right"].second) == (0, 1)
    assert pair.tests["tier"].verdict == "not significant: right and wrong on the same cases"
    with pytest.raises(ValueError, match="same rows"):
        compare(bias, evaluate(rows[:2], [Answer(None)] * 2, contract, "v2", "test"))


@pytest.fixture(scope="module")
def registry(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("registry") / "adapters")
    qlora.fit(prepare(recipe(tiny_base, tmp_path_factory.mktemp("recipe"))), registry, SILENT)
    return registry


DATASETS = [ROOT / "data/v1/test.jsonl", ROOT / "data/regression.jsonl"]


def test_adapters_and_their_base_share_an_engine(registry: Registry) -> None:
    subjects = [candidate(name, registry, None, None) for name in ("base", "champion")]
    assert subjects[0].contract.fingerprint == subjects[1].contract.fingerprint
    results = serve(subjects, DATASETS, engine="replay")
    assert [(r.adapter, r.measures["parsed"].count) for r in results] == [
        ("base", 4), ("base", 5), ("champion", 4), ("champion", 5)
    ]  # fmt: skip


def test_the_base_is_that_of_the_adapter_named_beside_it(
    tiny_base: Path, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the champion's: its contract may be another task's, which cannot read the data set."""
    monkeypatch.chdir(ROOT)
    registry = Registry(tmp_path / "adapters")
    other = make_bundle(
        tiny_base, Contract.load(ROOT / "tests/data/triage/contract.toml"), tmp_path / "other"
    )
    for bundle, alias in ((tiny_bundle, "champion"), (other, "latest")):
        registry.add(Path(shutil.copytree(bundle.path, registry.staging(), dirs_exist_ok=True)))
        registry.set_alias(alias, bundle.digest)
    base, latest = candidates(["base", "latest"], registry)
    assert base.bundle is None and base.contract.fingerprint == latest.contract.fingerprint
    (alone,) = candidates(["base"], registry)
    assert alone.contract.fingerprint == tiny_bundle.contract.fingerprint


def test_an_adapters_own_training_rows_are_counted(registry: Registry) -> None:
    results = serve([candidate("champion", registry)], [ROOT / "data/v1/train.jsonl", *DATASETS], "replay")
    assert [result.seen for result in results] == [24, 0, 0]
    (base,) = serve([candidate("base", registry)], [ROOT / "data/v1/train.jsonl"], "replay")
    assert base.seen is None


def test_enforced_rules_are_judged_with_the_answer(
    tiny_base: Path, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an output holds it: `eval` of the adapter and of its output differed."""
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "adapters"))
    enforced = Contract.from_dict({**contract.raw, "enforce_rules": True})
    bundle = make_bundle(tiny_base, enforced, tmp_path / "adapters")
    dataset, table, out = ROOT / "data/natural.jsonl", tmp_path / "in.parquet", tmp_path / "out.parquet"
    gold = load_rows(dataset, enforced, evaluation=True)
    pl.DataFrame({"id": [row.id for row in gold], "request": [row.request for row in gold]}).write_parquet(
        table
    )
    run(Options(str(table), str(out), adapter=bundle.digest, engine="replay"), Observer())
    assert pl.read_parquet(out)["rules_applied"].count()
    (asked,) = serve([candidate(bundle.digest, Registry())], [dataset], "replay")
    written = judge_scored(read_scored(out, text_column="request"), out, gold, enforced, str(dataset))
    assert written.measures == asked.measures and written.checks.equals(asked.checks)


def test_what_is_wrong_is_said_before_an_engine_starts(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(DatasetError, match=r"rows\.jsonl:1"):
        serve([candidate("champion", registry, None, None)], [tmp_path / "rows.jsonl"])
    with pytest.raises(AdapterError, match="carries its own contract"):
        candidate("champion", registry, "data/contract.toml", None)
    with pytest.raises(AdapterError, match=r"no adapter 'champoin'.*did you mean 'champion'"):
        candidate("champoin", registry, None, None)


def test_eval_command_on_vllm(registry: Registry, tmp_path: Path) -> None:
    """The whole command on the real engine: a base of random weights answers legally and wrongly."""
    out = tmp_path / "eval.json"
    names = ["majority", "keywords", "tfidf", "base", "champion"]
    arguments = [
        "eval",
        ",".join(names),
        *map(str, DATASETS),
        "--json",
        str(out),
        "--train",
        str(ROOT / "data/v1/train.jsonl"),
    ]
    result = CliRunner().invoke(
        main, arguments, env={"BATCH_ROUTE_ADAPTERS": str(registry.root), "COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    found = [(e["adapter"], Path(e["dataset"]).name) for e in json.loads(out.read_text())["evaluations"]]
    assert found == [(name, path.name) for name in names for path in DATASETS]
    assert "all fields right" in result.output
