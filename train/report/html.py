"""`report`: one self-contained HTML file on an adapter, from its bundle and from fresh answers on the path
that serves.

bundle (loss, recipe, data, calibration) + doctor + answers to labelled datasets → charts and tables
"""

import dataclasses
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from batch.adapter.bundle import Bundle
from batch.adapter.references import find_upwards
from batch.adapter.registry import Registry
from batch.contract.fields import as_text
from batch.errors import AdapterError
from batch.reporting.page import render_page
from batch.scoring.lane import ScoredRow
from batch.scoring.output_rows import outcomes
from batch.storage.location import write_file
from train.dataset import Row, load_rows
from train.diagnosis.contrast import Probe, mention_rules, probes
from train.diagnosis.diagnose import Bias, asked_probes, asked_rows, bias
from train.doctor import Check, doctor
from train.evaluation.ask import Candidate, candidates, judged, route
from train.evaluation.evaluate import ALL, Comparison, Evaluation, compare
from train.evaluation.tables import warn_of_seen
from train.fit.calibrate import describe, risk_coverage
from train.fit.loss_chart import loss_figure
from train.report import plots

TEMPLATE = Path(__file__).with_name("report.html")
# beside the contract that was trained on, where they are
DATASETS = (
    "regression.jsonl",
    "natural.jsonl",
    "probes.jsonl",
)
RELIABILITY = "Share right by mean score, in bins of equal mass, for each field"
COVERAGE = "Share of wrong rows among those kept, by the share kept"
MISSES_SHOWN = 40
VALUES_SHOWN = 40  # in a chart of confusion
ENOUGH = 100  # judged rows for curves of an adapter that was not calibrated


@dataclasses.dataclass(frozen=True)
class Judged:
    """One dataset: what each adapter made of it, and the paired test where there are two."""

    name: str
    evaluations: Sequence[Evaluation]
    comparison: Comparison | None

    @property
    def measures(self) -> list[str]:
        return [*self.evaluations[0].fields, ALL]


def write_adapter_report(
    adapter: str,
    registry: Registry,
    out: Path,
    datasets: Sequence[Path] = (),
    against: str | None = None,
    data: Path | None = None,
) -> None:
    """Judge, examine and draw. Raises `AdapterError`, `DatasetError`, `EngineError`; nothing is
    written then.
    """
    subjects = candidates(filter(None, (adapter, against)), registry)
    bundle = subjects[0].bundle
    if bundle is None:
        raise AdapterError(
            "a report is on an adapter, not on a base alone; name a bundle, and the base with --against"
        )
    chosen = list(datasets) or default_datasets(bundle)
    gold = [[load_rows(path, subject.contract, evaluation=True) for path in chosen] for subject in subjects]
    contrast = [probes(subject.contract) for subject in subjects]
    texts = [
        [*([row.request for row in rows] for rows in each), [p.request for p in own]]
        for each, own in zip(gold, contrast, strict=True)
    ]
    checks = doctor(bundle, data)
    answers = route(subjects, texts)
    biases = [
        _biases(subject, chosen, rows, own, given)
        for subject, rows, own, given in zip(subjects, gold, contrast, answers, strict=True)
    ]
    results = list(_judged(subjects, chosen, gold, answers))
    warn_of_seen([each for result in results for each in result.evaluations])
    page = render(bundle, adapter, checks, results, gold[0], answers[0][: len(chosen)], biases)
    write_file(out, page.encode())


def default_datasets(bundle: Bundle) -> list[Path]:
    """The bundle's test split, and the fixed sets beside its contract, as far as they are found from here."""
    data, recipe = bundle.manifest.get("data", {}), bundle.manifest.get("recipe", {})
    contract = Path(recipe.get("data", {}).get("contract", "."))
    named = (data.get("test", {}).get("path"), *(str(contract.parent / name) for name in DATASETS))
    found = (find_upwards(reference, bundle.path) for reference in named if reference)
    return [path for path in found if path]


def _judged(
    subjects: Sequence[Candidate],
    datasets: Sequence[Path],
    gold: Sequence[Sequence[list[Row]]],
    answers: Sequence[Sequence[list[ScoredRow]]],
) -> Iterator[Judged]:
    for number, path in enumerate(datasets):
        results = [
            judged(subject, gold[i][number], answers[i][number], path.name)
            for i, subject in enumerate(subjects)
        ]
        paired = len(results) == 2 and results[0].fields == results[1].fields
        yield Judged(path.name, results, compare(*results) if paired else None)


def _biases(
    subject: Candidate,
    datasets: Sequence[Path],
    gold: Sequence[list[Row]],
    contrast: Sequence[Probe],
    answers: Sequence[list[ScoredRow]],
) -> list[Bias]:
    """What each mention rule's label depends on, on every dataset and on contrast probes."""
    asked = asked_probes(contrast, answers[-1])
    for path, rows, given in zip(datasets, gold, answers, strict=False):
        asked += asked_rows(path.name, rows, given)
    return [bias(rule, asked) for rule in mention_rules(subject.contract)]


def render(
    bundle: Bundle,
    name: str,
    checks: Sequence[Check],
    judged: Sequence[Judged],
    gold: Sequence[Sequence[Row]],
    answers: Sequence[Sequence[ScoredRow]],
    biases: Sequence[Sequence[Bias]] = (),
) -> str:
    """The page. `gold` and `answers` are the adapter's, dataset by dataset as in `judged`; `biases` are each
    adapter's.
    """
    metrics = json.loads((bundle.path / "metrics.json").read_text(encoding="utf-8"))
    calibration = json.loads((bundle.path / "calibration.json").read_text(encoding="utf-8"))
    largest = max(
        (each for each in judged), key=lambda each: len(each.evaluations[0].all_right), default=None
    )
    misses = [(each.name, miss) for each in judged for miss in each.evaluations[0].misses]
    return render_page(
        TEMPLATE,
        bundle=bundle,
        name=name,
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        checks=checks,
        judged=judged,
        biases=list(zip(*biases, strict=True)) if len({len(each) for each in biases}) == 1 else [],
        interval_charts={
            each.name: plots.svg(
                plots.intervals(each.evaluations, each.measures),
                f"Shares right on {each.name}, with intervals",
            )
            for each in judged
        },
        largest=largest,
        confusion_charts=_confusions(largest.evaluations[0], bundle) if largest else {},
        loss=plots.svg(loss_figure(metrics["history"], ""), "Loss by step of the training")
        if metrics.get("history")
        else None,
        scores=_scores(calibration, bundle, gold, answers),
        calibration=calibration,
        misses=misses[:MISSES_SHOWN],
        more_misses=max(0, len(misses) - MISSES_SHOWN),
        metrics=metrics,
        recipe=list(_flat(bundle.manifest.get("recipe", {}))),
    )


def _confusions(evaluation: Evaluation, bundle: Bundle) -> dict[str, tuple[Markup, str]]:
    """A chart of each field, and what it leaves out, if anything: a chart of some hundred values could not be
    read, and would take minutes to draw.
    """
    fields = {field.name: field for field in bundle.contract.scored_fields}
    shown = {}
    for name, cells in evaluation.confusion.items():
        values = [as_text(value) for value in fields[name].values]
        if name in evaluation.sets:  # there are too many: those that were given or answered
            values = sorted({value for pair in cells for value in pair if value is not None})
        values, left_out = _legible(cells, values)
        label = f"Confusion of {name}: rows by gold and answered value"
        shown[name] = plots.svg(plots.confusion(cells, values), label) if values else Markup(), left_out
    return shown


def _legible(cells: Mapping[tuple[str, str | None], int], values: list[str]) -> tuple[list[str], str]:
    """The values that a chart has room for, and a line on those it has not."""
    if len(values) <= VALUES_SHOWN:
        return values, ""
    wrong = plots.confused(cells, values, len(values))
    kept = plots.confused(cells, values, VALUES_SHOWN)
    if not kept:
        return kept, f"None of the {len(values)} values was mistaken for another."
    which = "in most wrong rows" if len(kept) < len(wrong) else "in a wrong row"
    return kept, f"Shown are {len(kept)} of {len(values)} values: those that occur {which}."


def _scores(
    calibration: Mapping[str, Any],
    bundle: Bundle,
    gold: Sequence[Sequence[Row]],
    answers: Sequence[Sequence[ScoredRow]],
) -> dict[str, Any] | None:
    """Reliability and risk-coverage: of the rows calibrated on, else of those judged here; None where they
    are too few.
    """
    if calibration["calibrated"]:
        evidence = calibration["evidence"]
        kept = evidence["kept"] / calibration["rows"] or None
        return {
            "of": f"the {calibration['rows']} rows that scores were calibrated on",
            "reliability": plots.svg(plots.reliability(evidence["fields"]), RELIABILITY),
            "coverage": plots.svg(
                plots.risk_coverage(evidence["risk_coverage"], calibration["target_error"], kept), COVERAGE
            ),
            "fields": evidence["fields"],
        }
    pairs = [
        (row, made)
        for rows, given in zip(gold, answers, strict=True)
        for row, made in zip(rows, outcomes(given, bundle.contract, bundle.calibration), strict=True)
        if made.model is not None
    ]
    if len(pairs) < ENOUGH:
        return None
    names = [field.name for field in bundle.contract.scored_fields]
    right = {name: np.array([made.model[name] == row.answer[name] for row, made in pairs]) for name in names}  # type: ignore[index]
    fields = {
        name: {"raw": describe(np.array([made.scores[name] for _, made in pairs]), hit)}  # type: ignore[index]
        for name, hit in right.items()
    }
    curve = risk_coverage(np.array([made.score for _, made in pairs]), np.all(list(right.values()), axis=0))
    return {
        "of": f"the {len(pairs)} rows judged here",
        "reliability": plots.svg(plots.reliability(fields), RELIABILITY),
        "coverage": plots.svg(plots.risk_coverage(curve, None, None), COVERAGE),
        "fields": fields,
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
