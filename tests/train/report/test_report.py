"""The training report: one self-contained page with the figures it was given; and the whole command on the real engine."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batch.adapter.bundle import Bundle, seal_bundle
from batch.contract.contract import Contract
from batch.scoring.lane import ScoredRow
from batch.storage.places import refuse_others
from tests.conftest import ROOT
from train.cli import main
from train.commands.report import WRITTEN
from train.dataset import Row, load_rows
from train.doctor.check import NAMES, Check
from train.evaluation.evaluate import compare, evaluate
from train.fit.calibrate import calibrate
from train.report import html as report
from train.report import plots
from train.report.html import Judged, default_datasets, render
from train.report.plots import THEME

CHECKS = [Check(name, name != "three arms", f"what was seen of {name}") for name in NAMES]


def answered(rows: list[Row], wrong: int) -> list[ScoredRow]:
    """Gold answers with scores, but for `wrong` of them, which say Salesforce."""
    found = []
    for index, row in enumerate(rows):
        answer = dict(row.answer) | (
            {"recommended_platform": "Databricks app + Salesforce integration"} if index < wrong else {}
        )
        found.append(
            ScoredRow(
                {**answer, "reason": "x" * 20}, dict.fromkeys(list(row.answer)[:4], 0.9 - 0.001 * index)
            )
        )
    return found


def page(bundle: Bundle, wrong: tuple[int, ...] = (20,), rows: list[Row] | None = None) -> str:
    rows = rows or load_rows(ROOT / "data/natural.jsonl", bundle.contract, evaluation=True)
    answers = [answered(rows, count) for count in wrong]
    results = [
        evaluate(rows, given, bundle.contract, f"v{i}", "natural.jsonl")
        for i, given in enumerate(answers, start=1)
    ]
    judged = Judged("natural.jsonl", results, compare(*results) if len(results) == 2 else None)
    return render(bundle, "v1", CHECKS, [judged], [rows], [answers[0]])


class Sound(HTMLParser):
    """Fails on anything that is loaded from elsewhere, on scripts, and on tags that are not closed."""

    VOID = frozenset({"meta", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "img", "iframe")
        for name, value in attrs:
            assert name not in ("src", "onload", "onclick"), (tag, name)
            if name in ("href", "xlink:href"):
                assert (value or "").startswith("#"), value
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "image"  # the page's own policy would not show it
        if tag == "use":
            assert (dict(attrs)["xlink:href"] or "").startswith("#")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def text_of(html: str) -> str:
    parser = Sound()
    parser.feed(html.replace("<wbr>", ""))  # where a name may be broken
    assert parser.open == []
    return re.sub(r"\s+", " ", " ".join(parser.text))


def test_the_page_stands_alone_and_says_what_it_was_given(tiny_bundle: Bundle) -> None:
    html = page(tiny_bundle)
    text = text_of(html)
    assert "11 of 12" in text and "FAIL three arms what was seen of three arms" in text
    assert "natural.jsonl, 191 rows" in text and re.search(r"recommended_platform 1[789]\d/191", text)
    assert "Not calibrated" in text and "191 rows judged here" in text
    assert "recommended_<wbr>platform" in html and "u200b" not in html
    # intervals, a confusion matrix a field, reliability and risk-coverage
    assert html.count("<svg") == 1 + 4 + 2


def test_the_page_says_whose_answers_are_judged(tiny_bundle: Bundle) -> None:
    """Where rules are enforced the figures are those of an output, the scores those of the model."""
    enforced = Contract.from_dict({**tiny_bundle.contract.raw, "enforce_rules": True})
    told = [
        "of the model's own answers" in text_of(page(bundle))
        for bundle in (tiny_bundle, dataclasses.replace(tiny_bundle, contract=enforced))
    ]
    assert told == [False, True]


def test_charts_have_names_and_sections_are_in_the_list(tiny_bundle: Bundle) -> None:
    html = page(tiny_bundle, wrong=(20, 10))
    names = re.findall(r'<svg role="img" aria-label="([^"]+)"', html)
    assert len(names) == html.count("<svg") == len(set(names)) and "Confusion of tier" in " ".join(names)
    assert re.findall(r'<section id="([^"]+)"', html) == re.findall(r'<a href="#([^"]+)"', html)
    assert html.count("<section") == html.count("<section id=")
    charts = html[html.index("</style>") :]
    assert not [colour for colour in THEME if colour in charts]  # in the dark each has another


def test_a_chart_of_many_values_shows_those_that_were_confused(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field of 300 labels took more than three minutes to draw."""
    whole = text_of(page(tiny_bundle))
    assert "Shown are" not in whole
    monkeypatch.setattr(report, "VALUES_SHOWN", 2)
    html = page(tiny_bundle)
    assert "Shown are 2 of 5 values: those that occur in a wrong row." in text_of(html)
    assert "None of the 3 values was mistaken for another." in text_of(html)  # a tier, a risk
    names = re.findall(r'<svg role="img" aria-label="([^"]+)"', html)
    assert "Confusion of tier" not in " ".join(names)


def test_the_most_confused_values() -> None:
    values = ["d", "c", "b", "a", "e"]
    cells = {("a", "a"): 9, ("a", "b"): 2, ("c", "a"): 1, ("d", None): 1, ("e", "e"): 5, ("c", "b"): 3}
    assert plots.confused(cells, values, 3) == ["c", "b", "a"]
    assert plots.confused(cells, values, 9) == ["d", "c", "b", "a"]
    assert plots.confused({("a", "a"): 9}, values, 3) == []


def test_a_shade_is_the_share_of_all_the_gold_values_rows() -> None:
    """Those answered with a value that is not shown count too."""
    figure = plots.confusion({("a", "a"): 1, ("a", "z"): 3, ("b", "b"): 1}, ["a", "b"])
    shares = figure.axes[0].collections[0].get_array()
    assert shares is not None and shares.ravel().tolist() == [0.25, 0, 0, 1]


def test_two_adapters_are_compared(tiny_bundle: Bundle) -> None:
    text = text_of(page(tiny_bundle, (40, 0)))
    assert "McNemar" in text and "v1 is the first, v2 the second" in text and "the second is better" in text


def test_a_request_is_text_and_no_markup(tiny_bundle: Bundle, contract: Contract) -> None:
    rows = load_rows(ROOT / "data/regression.jsonl", contract)
    hostile = [Row(row.id, "<script>alert(1)</script>", row.answer, None, row.path, row.line) for row in rows]
    html = page(tiny_bundle, (len(rows),), hostile)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "Too few rows were judged for curves" in text_of(html)


def test_a_calibrated_bundle_shows_what_it_was_calibrated_on(tiny_bundle: Bundle, tmp_path: Path) -> None:
    rows = load_rows(ROOT / "data/natural.jsonl", tiny_bundle.contract, evaluation=True) * 5
    content: dict[str, Any] = calibrate(rows, answered(rows, 300), tiny_bundle.contract, 0.1)
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    (tmp_path / "bundle/calibration.json").write_text(json.dumps(content))
    seal_bundle(
        tmp_path / "bundle", {key: value for key, value in tiny_bundle.manifest.items() if key != "files"}
    )
    text = text_of(page(Bundle.open(tmp_path / "bundle")))
    assert "the 955 rows that scores were calibrated on" in text and "ECE, calibrated" in text
    assert content["why"] in text


def test_the_command(trained_registry: Path, trained: Bundle, tmp_path: Path) -> None:
    names = [path.name for path in default_datasets(trained)]
    assert names == ["test.jsonl", "regression.jsonl", "natural.jsonl", "probes.jsonl"]
    environment = {"BATCH_ROUTE_ADAPTERS": str(trained_registry)}
    arguments = [
        "report",
        "champion",
        "data/v1/test.jsonl",
        "data/regression.jsonl",
        "--against",
        "base",
        "--out",
        str(tmp_path / "r.html"),
    ]
    result = CliRunner().invoke(main, arguments, env=environment)
    assert result.exit_code == 0, result.output
    refuse_others("--out", tmp_path / "r.html", *WRITTEN)  # its own it writes again
    text = text_of((tmp_path / "r.html").read_text())
    assert (
        "12 of 12" in text and trained.digest in text and "base, not mentioned" in text and "contrast" in text
    )
    assert (
        f"validation loss {json.loads((trained.path / 'metrics.json').read_text())['best']['validation_loss']:.4f}"
        in text
    )
    assert (
        CliRunner()
        .invoke(main, ["report", "champion", "--out", "/no/such/folder/r.html"], env=environment)
        .exit_code
        == 2
    )


@pytest.mark.parametrize("content", ["my own notes", "<!doctype html>\n<title>batch-route report</title>\n"])
def test_another_programs_file_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """`report.html` is the default, and the name of many a report."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.html").write_text(content)
    result = CliRunner().invoke(main, ["report", "champion"])
    assert result.exit_code == 2 and result.output == (
        "Error: --out report.html is another program's file and would be written over; "
        "move it away, or choose another place\n"
    )
    assert (tmp_path / "report.html").read_text() == content


@pytest.mark.parametrize("adapter", ["none", "base"])
def test_a_report_needs_an_adapter(adapter: str, tmp_path: Path) -> None:
    arguments = ["report", adapter, "--out", str(tmp_path / "r.html")]
    result = CliRunner().invoke(main, arguments, env={"BATCH_ROUTE_ADAPTERS": str(tmp_path)})
    assert result.exit_code == 2 and "Error:" in result.output and not (tmp_path / "r.html").exists()
