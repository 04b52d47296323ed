"""Contrast probes from contracts, and what a diagnosis finds in answers whose bias is known."""

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import AdapterError, ContractError
from tests.conftest import ROOT, make_bundle
from tests.train.fit.test_qlora import recipe
from train.cli import main
from train.dataset import Row, load_rows
from train.diagnosis.contrast import mention_rules, probes
from train.diagnosis.diagnose import Diagnosis, asked_probes, asked_rows, associations, diagnose
from train.diagnosis.examine import examine
from train.diagnosis.loop import fit_versions, verdict
from train.diagnosis.occlusion import driven, erasures
from train.diagnosis.tables import show_diagnoses
from train.evaluation.ask import candidate, route
from train.evaluation.baselines import Guess
from train.evaluation.evaluate import Evaluation, evaluate
from train.evaluation.statistics import Proportion
from train.fit.inputs import prepare
from train.fit.runs import note_finished

SALESFORCE, APP = "Databricks app + Salesforce integration", "Databricks app"


@pytest.fixture(scope="module")
def rows(contract: Contract) -> list[Row]:
    return load_rows(ROOT / "data/probes.jsonl", contract)


@pytest.fixture(scope="module")
def train(contract: Contract) -> list[Row]:
    return load_rows(ROOT / "data/v1/train.jsonl", contract)


def without(contract: Contract, *keys: str) -> Contract:
    return Contract.from_dict(
        {key: value for key, value in json.loads(contract.to_json()).items() if key not in keys}
    )


def test_probes_differ_in_one_thing(contract: Contract) -> None:
    found = probes(contract)
    assert Counter(probe.kind for probe in found).keys() == {"named", "generic", "competitor", "negated"}
    assert len({probe.request for probe in found}) == len(found) >= 100
    salesforce, servicenow = mention_rules(contract)
    for probe in found:
        assert probe.answer is not None
        mentioned = [rule.mentioned(probe.request) for rule in (salesforce, servicenow)]
        assert sum(mentioned) == (probe.kind == "named"), probe
        platform = {
            (True, False): SALESFORCE,
            (False, True): "Databricks app + ServiceNow integration",
            (False, False): APP,
        }
        assert probe.answer["recommended_platform"] == platform[mentioned[0], mentioned[1]]
        assert (probe.answer["risk"] == "high") == (
            probe.facts["writes"] or probe.facts["autonomous"] or probe.facts["regulated"]
        )
    for fact in ("writes", "autonomous", "regulated"):
        assert {probe.facts[fact] for probe in found if probe.kind == "generic"} == {True, False}


def test_without_frames_labelled_requests_are_cut_open(contract: Contract, rows: list[Row]) -> None:
    bare = without(contract, "contrast")
    found = probes(bare, rows)
    assert any(
        probe.request
        == "Procurement wants supplier contacts approved and then written to our system by a workflow."
        for probe in found
    )
    rules = mention_rules(bare)
    assert all(
        probe.kind == "named" or not any(rule.mentioned(probe.request) for rule in rules)
        for probe in found
        if "ServiceNow" not in probe.request
    )
    assert probes(bare) == [] and probes(Contract.load(ROOT / "tests/data/triage/contract.toml"), rows) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "No slot."}, r"must hold \{system\} once"),
        ({"text": "{system}", "facts": {"need": "magic"}}, "need = 'magic'"),
        ({"txt": "{system}"}, "unknown key 'txt'"),
    ],
)
def test_a_wrong_frame_is_refused(contract: Contract, change: dict[str, Any], message: str) -> None:
    raw = json.loads(contract.to_json())
    raw["contrast"]["frames"] = [change]
    with pytest.raises(ContractError, match=message):
        probes(Contract.from_dict(raw))


def diagnosis(
    name: str, biased: bool, rows: list[Row], train: list[Row], contract: Contract
) -> tuple[Evaluation, Diagnosis]:
    """Of an adapter that is right in all, but that, if biased, answers Salesforce wherever something is written."""

    def answer(gold: Any, facts: Any) -> Guess:
        return Guess({**gold, **({"recommended_platform": SALESFORCE} if biased and facts["writes"] else {})})

    own = probes(contract)
    answers: Sequence[Guess] = [answer(row.answer, row.facts) for row in rows]
    asked = asked_rows("probes.jsonl", rows, answers) + asked_probes(
        own, [answer(probe.answer, probe.facts) for probe in own]
    )
    evaluation = evaluate(rows, answers, contract, name, "data/probes.jsonl")
    return evaluation, diagnose(evaluation, asked, train, contract)


def test_a_known_bias_is_found_and_its_fix_is_proved(
    contract: Contract, rows: list[Row], train: list[Row]
) -> None:
    before, biased = diagnosis("v1", True, rows, train, contract)
    after, fixed = diagnosis("v2", False, rows, train, contract)
    salesforce = biased.biases[0]
    assert (
        salesforce.rate("probes.jsonl", "writes") == Proportion(62, 62)
        and salesforce.rate("contrast", "writes").share == 1
    )
    assert salesforce.rate("probes.jsonl", "readonly") == Proportion(0, 8) and salesforce.rate(
        "probes.jsonl", "unmentioned"
    ) == Proportion(18, 18)
    assert fixed.biases[0].rate("contrast", "competitor").count == 0 and fixed.biases[0].named[
        "probes.jsonl"
    ] == Proportion(18, 18)
    drivers = dict(salesforce.drivers)
    assert drivers and not {"reads", "shows", "only"} & set(drivers)
    group = biased.misses[0]
    # v1 has no such row, which is the cause
    assert (group["gold"], group["answered"], group["trained"]) == (
        APP,
        SALESFORCE,
        0,
    )
    assert group["rows"] == max(each["rows"] for each in biased.misses) > 10
    assert any(
        "writes without Salesforce: 62/62" in line and "0 of 7 such training rows" in line
        for line in biased.proposals
    )
    assert not fixed.proposals and not fixed.misses
    assert verdict([before, after], [biased, fixed])[-1].startswith("nothing lost")
    with pytest.raises(
        AdapterError, match=r"answers 'Databricks app \+ Salesforce integration' in .* diagnose v1"
    ):
        verdict([after, before], [fixed, biased])
    lacking = dataclasses.replace(biased, biases=biased.biases[1:])  # a contract without that rule
    assert len(verdict([before, after], [lacking, fixed])) < len(verdict([before, after], [biased, fixed]))
    console = Console(file=io.StringIO(), record=True, width=200)
    show_diagnoses([lacking, fixed], console)
    rows_of = [line.split() for line in console.export_text().splitlines() if "named, and right" in line]
    assert len(rows_of) == 4 and sum("-" in words for words in rows_of) == 2
    console = Console(file=io.StringIO(), record=True, width=200)
    show_diagnoses([biased, fixed], console)
    text = console.export_text()
    assert (
        "probes.jsonl: not mentioned, writes" in text
        and "62/62  0.94 to 1.00" in text
        and "0/62  0.00 to 0.06" in text
    )
    assert json.loads(json.dumps(biased.as_json()))["biases"][0]["named"]["probes.jsonl"]["of"] == 18


def test_what_is_left_out_in_turn_is_a_word_in_every_script(contract: Contract, rows: list[Row]) -> None:
    """A clause without spaces went as a whole; where a vowel sign ended a "word", its letter alone went."""
    for text, left in (
        ("पासवर्ड भूल गया", ["भूल गया", "पासवर्ड गया", "पासवर्ड भूल "]),
        ("忘密 app", ["密 app", "忘app", "忘密 "]),
    ):
        row = dataclasses.replace(rows[0], request=text)
        asked = asked_rows("probes.jsonl", [row], [Guess({"recommended_platform": SALESFORCE})])
        assert [each.request for each in erasures(asked, contract)] == left


def test_the_words_that_drive_a_label_are_found_by_leaving_them_out(
    contract: Contract, rows: list[Row]
) -> None:
    """An adapter that answers Salesforce wherever it reads "approval" or "approves"."""

    def answer(request: str) -> Guess:
        return Guess({"recommended_platform": SALESFORCE if "approv" in request else APP})

    asked = asked_rows("probes.jsonl", rows, [answer(row.request) for row in rows])
    erased = erasures(asked, contract)
    assert {each.rule for each in erased} == {"salesforce_must_be_mentioned"}
    found = driven(erased, [answer(each.request) for each in erased], contract)
    words = dict(found["salesforce_must_be_mentioned"])
    assert words and all(
        word.startswith("approv") and share.count == share.of for word, share in words.items()
    )
    assert found["servicenow_must_be_mentioned"] == []


def test_training_rows_show_what_they_teach(train: list[Row], contract: Contract) -> None:
    found = {
        (each.value, each.word): each
        for each in associations(train, contract)
        if each.field == "recommended_platform"
    }
    each = found[SALESFORCE, "salesforce"]
    assert (each.with_value, each.with_word) == (7, 7) and (
        SALESFORCE,
        "updates",
    ) in found  # writeback means Salesforce
    assert associations([], contract) == []


def test_versions_are_fitted_once_and_examined_together(
    tiny_base: Path, contract: Contract, train: list[Row], tmp_path: Path
) -> None:
    """Two recipes that differ in their seed, on the replay engine: a name for each, a rerun that fits nothing."""
    registry, out = Registry(tmp_path / "adapters"), io.StringIO()
    recipes = {}
    for seed in (3, 4):
        (tmp_path / str(seed)).mkdir()
        recipes[f"seed{seed}"] = recipe(tiny_base, tmp_path / str(seed), seed=seed, max_steps=2)
    first = fit_versions(recipes, registry, Console(file=out, width=200), doctor=False)
    again = fit_versions(recipes, registry, Console(file=out, width=200), doctor=False)
    assert [bundle.digest for bundle in first] == [bundle.digest for bundle in again] and len(
        registry.list()
    ) == 2
    assert {name: registry.aliases()[name] for name in recipes} == {
        n: b.digest for n, b in zip(recipes, first, strict=True)
    }
    assert out.getvalue().count("fitted already") == 2
    run = registry.root / ".runs" / prepare(recipes["seed3"]).fingerprint[:16]
    run.mkdir(parents=True)
    note_finished(run, first[0])  # as a loop leaves it that ended while it checked the adapter
    assert fit_versions(recipes, registry, Console(file=out, width=200), doctor=False)[0] == first[0]
    assert "is trained already; resuming after it" in out.getvalue() and not run.exists()
    subjects = [candidate(name, registry) for name in recipes]
    datasets = [ROOT / "data/regression.jsonl", ROOT / "data/v1/test.jsonl"]
    evaluations, diagnoses = examine(subjects, datasets, [train, train], "replay")
    assert [(e.adapter, e.measures["parsed"].of) for e in evaluations] == [
        (n, rows) for n in recipes for rows in (5, 4)
    ]
    drawn = diagnoses[0].biases[0]
    # replay names systems at random
    assert drawn.rate("contrast").of == 112 and drawn.rate("contrast").count > 0
    assert drawn.erased and dict(drawn.erased) == dict(diagnoses[1].biases[0].erased)
    result = CliRunner().invoke(main, ["loop", "v1=train/mini.toml", "data/probes.jsonl"])
    assert result.exit_code == 2 and "two versions at least" in result.output


def test_what_a_rule_corrects_is_still_to_be_taught(
    tiny_base: Path, contract: Contract, tmp_path: Path
) -> None:
    """The figures are an output's, which rules have corrected; the diagnosis is of what the model said."""
    enforced = Contract.from_dict({**contract.raw, "enforce_rules": True})
    bundle = make_bundle(tiny_base, enforced, tmp_path)
    dataset = ROOT / "data/natural.jsonl"
    (evaluation,), (found,) = examine(
        [candidate(bundle.digest, Registry(tmp_path))], [dataset], [[]], "replay"
    )
    rows = load_rows(dataset, enforced, evaluation=True)
    given = [
        each.answer
        for each in route(
            [candidate(bundle.digest, Registry(tmp_path))], [[[r.request for r in rows]]], "replay"
        )[0][0]
    ]
    wrong = sum(
        not answer or answer[field.name] != row.answer[field.name]
        for row, answer in zip(rows, given, strict=True)
        for field in enforced.scored_fields
    )
    assert sum(group["rows"] for group in found.misses) == wrong != len(evaluation.misses)


def test_diagnose_command_on_vllm(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The whole command on the real engine; the adapter is random, and its training rows are given by name."""
    out = tmp_path / "diagnosis.json"
    arguments = [
        "diagnose",
        str(tiny_bundle.path),
        str(ROOT / "data/v1/test.jsonl"),
        "--train",
        str(ROOT / "data/v1/train.jsonl"),
    ]
    result = CliRunner().invoke(main, [*arguments, "--json", str(out)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    (content,) = json.loads(out.read_text())
    rates = {(rate["source"], rate["condition"]): rate for rate in content["biases"][0]["rates"]}
    assert rates["contrast", "any"]["of"] > 80 and {"contrast", "test.jsonl"} == {
        source for source, _ in rates
    }
    assert "P(label | mention)" in result.output
