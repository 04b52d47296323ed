"""Calibration: fits that recover what was distorted, bounds against published values, thresholds that keep their promise."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch.adapter.bundle import Bundle
from batch.adapter.calibration import Calibration, calibrated, product
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.contract.fields import as_text
from batch.errors import AdapterError
from batch.scoring.lane import ScoredRow
from batch.scoring.output_rows import Outcome, outcomes
from tests.conftest import ROOT
from train.dataset import Row
from train.fit.calibrate import (
    MIN_ROWS,
    adaptive_ece,
    calibrate,
    choose_threshold,
    describe,
    fit_beta,
    reliability,
    risk_coverage,
    upper_bound,
)
from train.fit.calibrated import calibrate_bundle, summary

ANSWER = {
    "tier": "Trusted Technical Builder",
    "risk": "high",
    "recommended_platform": "Databricks app",
    "needs_review": True,
    "reason": "The request builds an app that writes.",
}


def sigmoid(odds: Any) -> Any:
    return 1 / (1 + np.exp(-odds))


def test_identity_and_direction() -> None:
    assert calibrated(0.73, 1, 1, 0) == pytest.approx(0.73)
    # temperature 2 takes certainty away
    assert calibrated(0.9, 0.5, 0.5, 0) == pytest.approx(sigmoid(math.log(9) / 2))
    assert calibrated(0.9, 1, 1, -1) < 0.9
    assert calibrated(0.8, 2, 3, 0.5) == pytest.approx(sigmoid(2 * math.log(0.8) - 3 * math.log(0.2) + 0.5))
    # the ends of what may be fitted do not overflow
    assert 0 <= calibrated(0.0, 20, 20, -50) < calibrated(1.0, 20, 20, 50) <= 1


@pytest.mark.parametrize("true", [(1, 1, 0), (0.4, 0.4, 0), (2, 2, -1), (0.3, 1.5, 1), (1.5, 0.2, -0.5)])
def test_a_distortion_is_found_again(true: tuple[float, float, float]) -> None:
    """Rows are right as the curve says: the fit finds it, temperature scaling and Platt's among them, and scores get honest."""
    rng = np.random.default_rng(1)
    scores = sigmoid(rng.normal(1.0, 2.0, 20_000))
    honest = np.array([calibrated(score, *true) for score in scores])
    right = rng.random(20_000) < honest
    curve = fit_beta(scores, right)
    after = np.array([calibrated(score, *curve) for score in scores])
    assert np.abs(after - honest).mean() < 0.01
    assert describe(after, right)["ece"] < 0.015
    if true != (1, 1, 0):
        assert describe(after, right)["brier"] < describe(scores, right)["brier"]


def test_a_value_that_is_always_right_stays_below_certainty() -> None:
    after = calibrated(0.99, *fit_beta(np.full(400, 0.99), np.ones(400, bool)))
    assert 0.99 < after < 1


def test_bins_of_equal_mass_and_their_error() -> None:
    """Ten rows, two bins: mean scores 0.3 and 0.8 against shares 0.2 and 1.0, so (0.1 + 0.2) / 2."""
    scores = np.array([0.3, 0.3, 0.3, 0.3, 0.3, 0.8, 0.8, 0.8, 0.8, 0.8])
    right = np.array([True, False, False, False, False, True, True, True, True, True])
    bins = reliability(scores, right, 2)
    assert [(b.count, b.right) for b in bins] == [(5, 0.2), (5, 1.0)]
    assert [b.score for b in bins] == pytest.approx([0.3, 0.8])
    assert adaptive_ece(bins) == pytest.approx(0.15)
    assert describe(scores, right)["brier"] == pytest.approx((0.49 + 4 * 0.09 + 5 * 0.04) / 10)


@pytest.mark.parametrize(  # the rule of three's exact form, and R's binom.test(…, alternative = "less")$conf.int[2]
    ("wrong", "of", "bound"),
    [
        (0, 149, 1 - 0.05 ** (1 / 149)),
        (0, 10, 0.2588656),
        (1, 10, 0.3941633),
        (5, 100, 0.1022534),
        (10, 10, 1.0),
    ],
)
def test_clopper_pearson(wrong: int, of: int, bound: float) -> None:
    assert upper_bound(wrong, of, 0.05) == pytest.approx(bound, abs=1e-6)


def test_risk_falls_with_coverage() -> None:
    curve = risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True]))
    assert curve == [(0.25, 0.0), (0.5, 0.0), (0.75, pytest.approx(1 / 3)), (1.0, 0.25)]


def test_the_threshold_keeps_its_promise() -> None:
    """Over 300 draws the true share of errors above the threshold exceeds the target in 5 % of them at most (and chance)."""
    broken = found = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        scores = rng.beta(4, 1, 2000)
        right = rng.random(2000) < scores
        chosen = choose_threshold(scores, right, 0.05)
        if chosen:
            found += 1
            large = rng.beta(4, 1, 20_000)
            broken += float((1 - large[large >= chosen[0]]).mean()) > 0.05
    assert found > 250 and broken <= 0.05 * 300 + 6  # 6: about two standard deviations of the count


def test_a_few_wrong_rows_among_the_surest_do_not_hide_a_threshold() -> None:
    """One in a hundred is wrong at any score, and 4,000 rows show that it is under 2 %; of the first 200 one
    wrong row is too much. It was found in 45 of 300 draws.
    """
    found = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        found += choose_threshold(rng.random(4000), rng.random(4000) < 0.99, 0.02) is not None
    assert found >= 40


def test_curves_of_many_values_make_no_threshold() -> None:
    """Scores that say nothing of errors, of which there are 7 %: no threshold keeps them under 5 %. Curves and
    threshold of the same rows set one in 42 of 60 draws.
    """
    labels = {f"l{number:02}": "" for number in range(20)}
    contract = Contract.from_dict(
        {
            "name": "t",
            "prompt": {"system": "x {fields}"},
            "fields": [{"name": "queue", "type": "label", "labels": labels}],
        }
    )
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        said = [f"l{number:02}" for number in rng.integers(20, size=1600)]
        gold = [label if rng.random() < 0.93 else "l00" if label != "l00" else "l01" for label in said]
        rows = [Row(str(n), "x", {"queue": label}, None, Path("x"), n) for n, label in enumerate(gold)]
        scores = rng.uniform(0.6, 0.999, 1600)
        answers = [ScoredRow({"queue": s}, {"queue": float(p)}) for s, p in zip(said, scores, strict=True)]
        found += calibrate(rows, answers, contract, 0.05)["threshold"] is not None
    assert found <= 3


def test_no_threshold_where_none_will_do() -> None:
    rng = np.random.default_rng(0)
    assert choose_threshold(rng.random(2000), rng.random(2000) < 0.5, 0.02) is None
    # all right, but too few to say so
    assert choose_threshold(np.full(100, 0.99), np.ones(100, bool), 0.02) is None
    threshold, count, wrong, bound = choose_threshold(np.full(1000, 0.99), np.ones(1000, bool), 0.02) or (
        0,
        0,
        1,
        1,
    )
    assert (count, wrong) == (1000, 0) and threshold <= 0.99 and bound < 0.02


def labelled(contract: Contract, count: int, seed: int = 0) -> tuple[list[Row], list[ScoredRow]]:
    """Rows whose risk is overconfident: said 0.95 or so, right three times of four; the rest is right and honest."""
    rng = np.random.default_rng(seed)
    rows, answers = [], []
    for index in range(count):
        said = dict.fromkeys((field.name for field in contract.scored_fields), 0.999)
        said["risk"] = float(sigmoid(rng.normal(3, 1)))
        gold = dict(
            ANSWER,
            risk="high"
            if rng.random() < sigmoid(math.log(said["risk"] / (1 - said["risk"])) - 1.8)
            else "medium",
        )
        rows.append(Row(str(index), "An app.", gold, None, Path("x"), index))
        answers.append(ScoredRow(dict(ANSWER), said))
    return rows, answers


def outcome(row: ScoredRow, contract: Contract, calibration: Calibration) -> Outcome:
    return outcomes([row], contract, calibration)[0]


def written(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "calibration.json").write_text(json.dumps(content))
    return folder / "calibration.json"


def test_what_is_fitted_is_what_is_served(contract: Contract, tmp_path: Path) -> None:
    content = calibrate(*labelled(contract, 3000), contract, target_error=0.2)
    served = Calibration.load(written(tmp_path, content), contract)
    assert (
        content["evidence"]["fields"]["risk"]["raw"]["ece"]
        > 0.15
        > 0.03
        > content["evidence"]["fields"]["risk"]["calibrated"]["ece"]
    )
    rows, answers = labelled(contract, 3000, seed=1)
    after = outcomes(answers, contract, served)
    right = np.array(
        [(each.answer or {})["risk"] == row.answer["risk"] for row, each in zip(rows, after, strict=True)]
    )
    assert describe(np.array([(each.scores or {})["risk"] for each in after]), right)["ece"] < 0.03
    auto = np.array([each.triage == "auto" for each in after])
    assert auto.mean() > 0.2 and (~right[auto]).mean() <= 0.2
    assert all(each.score == pytest.approx(product(each.scores or {})) for each in after)


def test_too_few_rows_leave_scores_raw_and_say_so(contract: Contract, tmp_path: Path) -> None:
    content = calibrate(*labelled(contract, MIN_ROWS - 1), contract, 0.02)
    assert content["calibrated"] is False and "199 labelled rows are too few" in content["why"]
    rows, answers = labelled(contract, MIN_ROWS + 1)
    answers[:2] = [ScoredRow(None, None, (), "invalid_output")] * 2
    assert calibrate(rows, answers, contract, 0.02)["why"] == (
        "199 of 201 labelled rows have a valid answer, 200 are needed to calibrate on"
    )
    served = Calibration.load(written(tmp_path, content), contract)
    row = ScoredRow(dict(ANSWER), {"tier": 0.9})
    assert outcome(row, contract, served).scores == {"tier": 0.9} and served.threshold is None


def test_who_has_to_look(contract: Contract) -> None:
    sure = Calibration(threshold=0.8)
    row = ScoredRow(dict(ANSWER), {"tier": 0.9})
    assert outcome(row, contract, sure).triage == "auto"
    assert outcome(row._replace(scores={"tier": 0.7}), contract, sure).triage == "human"
    assert outcome(row._replace(violations=("high_risk_needs_review",)), contract, sure).triage == "human"
    assert outcome(ScoredRow(None, None, (), "empty_text"), contract, sure) == (
        None,
        None,
        None,
        "human",
        None,
        None,
        {},
        {},
    )


def pairs(contract: Contract) -> dict[str, Any]:
    one = {"a": 1.0, "b": 1.0, "c": 0.0}
    return {
        field.name: {as_text(value): dict(one) for value in field.values} for field in contract.scored_fields
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("fields"),
        lambda content: content["fields"].update(colour={}),
        lambda content: content["fields"]["risk"].pop("low"),
        lambda content: content["fields"]["risk"]["low"].pop("b"),
        lambda content: content["fields"]["risk"]["low"].update(a=-0.1),
        lambda content: content["fields"]["risk"]["low"].update(c=float("nan")),
        lambda content: content.update(threshold=1.5),
        lambda content: content.update(threshold="high"),
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(
    contract: Contract, tmp_path: Path, change: Any
) -> None:
    content: dict[str, Any] = {"calibrated": True, "fields": pairs(contract), "threshold": 0.9}
    assert Calibration.load(written(tmp_path, content), contract).threshold == 0.9
    change(content)
    with pytest.raises(AdapterError, match="calibrate the adapter again"):
        Calibration.load(written(tmp_path, content), contract)


def test_a_bundle_is_calibrated_on_the_served_path(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """On vLLM with random weights: honest figures of a bad model, a bundle of its own, no threshold, every row for a person."""
    registry = Registry(tmp_path / "adapters")
    rows = [
        json.loads(line)
        for path in ("natural", "probes")
        for line in (ROOT / f"data/{path}.jsonl").read_text().splitlines()
    ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**row, "id": str(n)}) + "\n" for n, row in enumerate(rows))
    )
    warned: list[str] = []
    made, content = calibrate_bundle(tiny_bundle, tmp_path / "rows.jsonl", 0.02, registry, warned.append)
    assert made.digest != tiny_bundle.digest
    assert len(warned) == 1 and "the training rows of adapter" in warned[0]
    assert content["threshold"] is None and "every row needs a person" in content["why"]
    assert (
        made.calibration.fields["risk"].keys() == {"low", "medium", "high"}
        and registry.aliases()["latest"] == made.digest
    )
    assert all(
        found["calibrated"]["brier"] < found["raw"]["brier"]
        for found in content["evidence"]["fields"].values()
    )
    assert len(summary(content)) == 5
