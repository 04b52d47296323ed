"""One file of decisions for all nights, whose ids may begin anew: a decision is on an id and its text."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from batch.adapter.bundle import Bundle, seal_bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.job import Options
from batch.reporting.observer import Observer
from batch.run import run
from tests.conftest import ROOT
from tests.train.review.conftest import Output
from train.cli import main
from train.config import Config
from train.dataset import load_rows
from train.decisions import DecisionLog, standing
from train.evaluation.from_scored import text_column_of
from train.review.improve import extend
from train.review.queue import Selection, read_items
from train.review.serve import ids_in, seed_of
from train.review.session import Session

CONTRACT = ("--contract", str(ROOT / "data/contract.toml"))
GOLD = [json.loads(line) for line in (ROOT / "data/v2/train.jsonl").read_text().splitlines()]
OTHER = next(row for row in GOLD if row["risk"] != GOLD[0]["risk"])
MONDAY = [f"Monday's beekeepers count their hives, number {i}." for i in range(3)]
TUESDAY = ["Find our travel policy.", "Zoologists look up feeding plans.", "Book a room for twelve people."]


def invoke(*line: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in line])


def sitting(scored: Path, contract: Contract, labels: Path, **selection: Any) -> Session:
    items = read_items(scored, contract, Selection(**selection), seed_of(scored))
    return Session(items, contract, DecisionLog(labels), "ann")


@pytest.fixture
def nights(output: Output, contract: Contract, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Monday's and Tuesday's outputs, with ids r0 to r2 in both, and the labels of all of Monday's rows."""
    monday, tuesday = (output(texts, auto=1, name=f"{texts[0][:3]}.parquet") for texts in (MONDAY, TUESDAY))
    labels = tmp_path / "reviewed.jsonl"
    session = sitting(monday, contract, labels, audit=1.0)
    for name in session.state()["next"]:
        session.decide("label", name, 0, {"answer": OTHER, "facts": OTHER["facts"]})
    return monday, tuesday, labels


def test_another_nights_rows_are_not_done(nights: tuple[Path, Path, Path], contract: Contract) -> None:
    monday, tuesday, labels = nights
    assert sitting(monday, contract, labels).state()["left"] == 0
    session = sitting(tuesday, contract, labels)
    state = session.state()
    assert (state["left"], state["done"], state["last"]) == (2, {}, None)
    item = session.item("r1")
    assert item and item["decision"] is None and item["known"] == 0
    session.decide("skip", "r1", 0, {})
    assert session.state()["done"] == {"skip": 1}
    session.decide("undo", "r1", 1, {})
    assert sitting(monday, contract, labels).state()["done"] == {"label": 2}


def test_answers_are_written_into_the_rows_that_were_read(
    nights: tuple[Path, Path, Path], contract: Contract, tmp_path: Path
) -> None:
    monday, tuesday, labels = nights
    final = tmp_path / "final.parquet"
    refused = invoke("apply-reviews", tuesday, labels, final, *CONTRACT)
    assert refused.exit_code == 2 and "none of the decisions (3) is on a row of" in refused.output
    session = sitting(tuesday, contract, labels)
    session.decide("label", "r1", 0, {"answer": GOLD[0], "facts": GOLD[0]["facts"]})
    done = invoke("apply-reviews", tuesday, labels, final, *CONTRACT)
    assert done.exit_code == 0, done.output
    assert done.output == (
        f"{final}: 3 rows, 1 answered by people, 1 of them changed; "
        f"left out: 3 decisions on rows that {tuesday} does not have\n"
    )
    made = pl.read_parquet(final)
    assert made["answered_by"].to_list() == ["model", "ann", "model"]
    assert made["risk"].to_list() == [GOLD[0]["risk"], GOLD[0]["risk"], GOLD[2]["risk"]]
    assert invoke("apply-reviews", monday, labels, final, *CONTRACT).exit_code == 0
    assert pl.read_parquet(final)["risk"].to_list() == [OTHER["risk"]] * 3


def test_the_audit_counts_what_was_read(nights: tuple[Path, Path, Path]) -> None:
    monday, tuesday, labels = nights
    line = ("audit", monday, tuesday, "--labels", labels, *CONTRACT, "--target-error", "0.1")
    result = invoke(*line)
    assert f"{monday.name}: 1 auto rows, 1 of 1 audited wrong\n" in result.output
    assert f"{tuesday.name}: 1 auto rows, 0 of 0 audited wrong\n" in result.output


@pytest.mark.parametrize("old", [False, True])
def test_a_decision_counts_in_the_audit_of_its_own_night(
    output: Output, contract: Contract, tmp_path: Path, old: bool
) -> None:
    """The same rows lie there every night; a later adapter may have learnt them from these decisions."""
    monday, tuesday = (output(8, auto=8, name=f"{day}.parquet") for day in ("mon", "tue"))
    pl.read_parquet(tuesday).with_columns(adapter=pl.lit("1" * 64)).write_parquet(tuesday)
    labels = tmp_path / "l.jsonl"
    session = sitting(monday, contract, labels, audit=1.0)
    for name in session.state()["next"]:
        session.decide("label", name, 0, {"answer": OTHER, "facts": OTHER["facts"]})
    assert sitting(tuesday, contract, labels, audit=1.0).state()["left"] == 0
    if old:
        lines = [{**json.loads(line), "audit": True} for line in labels.read_text().splitlines()]
        labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for first, second in ((monday, tuesday), (tuesday, monday)):
        os.utime(first, (0, 0))
        os.utime(second, (1, 1))
        result = invoke("audit", tuesday, monday, "--labels", labels, *CONTRACT, "--target-error", "0.1")
        for night, audited in (monday, 8), (tuesday, 0):
            assert re.search(rf"{night.name}: 8 auto rows, \d of {audited} audited wrong", result.output)


def test_an_older_line_counts_in_one_night_of_an_adapter(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    """It names no run: over a week of one backlog it would be seven answers of one."""
    nights = [output(8, auto=8, name=f"{day}.parquet") for day in ("mon", "tue")]
    labels = tmp_path / "l.jsonl"
    session = sitting(nights[0], contract, labels, audit=1.0)
    for name in session.state()["next"]:
        session.decide("label", name, 0, {"answer": OTHER, "facts": OTHER["facts"]})
    lines = [{**json.loads(line), "audit": True} for line in labels.read_text().splitlines()]
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = invoke("audit", *nights, "--labels", labels, *CONTRACT, "--target-error", "0.1").output
    assert sum(map(int, re.findall(r"\d+ of (\d+) audited wrong", told))) == 8


def test_drawn_rows_that_people_cannot_decide_may_all_be_wrong(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    """They dropped out without a word, and they are the hard ones. Those that nobody got to are any ones."""
    scored, labels, metrics = output(60, auto=60), tmp_path / "l.jsonl", tmp_path / "a.prom"
    session = sitting(scored, contract, labels, audit=1.0)
    names = session.state()["next"] + [f"r{number}" for number in range(60)]
    *answered, skipped, unsure, unsure_too = list(dict.fromkeys(names))[:28]
    for name in answered:
        gold = GOLD[int(name[1:])]
        session.decide("label", name, 0, {"answer": gold, "facts": gold["facts"]})
    for name, kind in ((skipped, "skip"), (unsure, "unsure"), (unsure_too, "unsure")):
        session.decide(kind, name, 0, {})
    line = ("audit", scored, "--labels", labels, *CONTRACT, "--metrics", metrics)
    for target, holds in ((0.1, -1), (0.11, 1)):
        result = invoke(*line, "--target-error", target)
        assert result.exit_code == 0
        assert "0 of 25 audited wrong, 3 unsure or skipped, 32 open" in result.output
        assert "0.107 if all of them were wrong; 32 more drawn are open" in result.output
        assert f'batch_route_audit_target_holds{{task="a"}} {holds}.0' in metrics.read_text()
        assert 'batch_route_audit_undecided_rows{task="a"} 3.0' in metrics.read_text()


def test_rows_are_open_that_the_last_sitting_asked_for(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    """One sitting at a larger share left rows open for ever; what was left unsure in it counts all the same."""
    scored, labels = output(400, auto=400), tmp_path / "l.jsonl"
    many, few = (sitting(scored, contract, labels, audit=share) for share in (0.5, 0.05))
    hard = next(name for name in many.state()["next"] if not few.item(name))
    many.decide("unsure", hard, 0, {})
    lines = [json.loads(line) for line in labels.read_text().splitlines()]
    labels.write_text("".join(json.dumps({**each, "reviewed_at": "2026-11-01"}) + "\n" for each in lines))
    few = sitting(scored, contract, labels, audit=0.05)
    while names := few.state()["next"]:
        for name in names:
            gold = GOLD[int(name[1:]) % len(GOLD)]
            few.decide("label", name, 0, {"answer": gold, "facts": gold["facts"]})
    result = invoke("audit", scored, "--labels", labels, *CONTRACT, "--target-error", "0.1")
    assert re.search(r"0 of \d+ audited wrong, 1 unsure or skipped, 0 open", result.output), result.output


def test_a_reviewer_who_stops_has_read_a_random_part_of_the_audit(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    """It came last, the lowest score first, and in the order of the rows."""
    scored = output(60, auto=50)
    rows = pl.read_parquet(scored).with_columns(score=pl.int_range(60) / 60)
    rows.write_parquet(scored)
    for order in ("worth", "queue"):
        items = read_items(scored, contract, Selection(order, audit=1.0), "s")  # type: ignore[arg-type]
        assert [bool(item.audit) for item in items] == [False] * 10 + [True] * 50
        first = [item.scores["score"] for item in items[10:35]]
        assert first != sorted(first) and max(first) > 0.7 and 0.3 < sum(first) / 25 < 0.55
    assert read_items(scored, contract, Selection(audit=0.5), "s")[-1].audit == {"run": "s", "share": 0.5}


def test_both_nights_rows_are_trained_on(
    nights: tuple[Path, Path, Path], contract: Contract, tmp_path: Path
) -> None:
    _, tuesday, labels = nights
    sitting(tuesday, contract, labels).decide("label", "r1", 0, {"answer": OTHER, "facts": OTHER["facts"]})
    assert len(load_rows(labels, contract, decisions=True)) == 4
    made = extend(Config.load(ROOT / "train/mini-v2.toml"), [labels], tmp_path / "out")
    texts = {row.request for row in load_rows(made.config.data.train, contract)}
    assert {MONDAY[1], TUESDAY[1]} <= texts


def test_reviewers_are_compared_on_what_both_read(
    nights: tuple[Path, Path, Path], contract: Contract, tmp_path: Path
) -> None:
    monday, tuesday, labels = nights
    second, out = tmp_path / "bo.jsonl", tmp_path / "differences.jsonl"
    session = sitting(tuesday, contract, second)
    session.decide("label", "r1", 0, {"answer": GOLD[0], "facts": GOLD[0]["facts"]})
    result = invoke("agreement", labels, second, *CONTRACT)
    assert result.exit_code == 2 and "no request in common" in result.output
    session = sitting(monday, contract, second)
    session.decide("label", "r1", 0, {"answer": GOLD[0], "facts": GOLD[0]["facts"]})
    assert invoke("agreement", labels, second, *CONTRACT, "--out", out).exit_code == 0
    asked = [read_items(each, contract, Selection(ids=ids_in(out)), "s") for each in (monday, tuesday)]
    assert [[item.id for item in items] for items in asked] == [["r1"], []]


def test_another_nights_labels_hide_no_candidate(nights: tuple[Path, Path, Path]) -> None:
    _, tuesday, labels = nights
    result = invoke("candidates", tuesday, "--labelled", labels, *CONTRACT)
    assert {json.loads(line)["request"] for line in result.output.splitlines()} == set(TUESDAY)


def test_older_lines_without_the_text_take_back_what_they_took_back(tmp_path: Path) -> None:
    label = {**GOLD[0], "decision": "label", "reviewer": "ann"}
    undo, skip = ({"id": GOLD[0]["id"], "decision": kind, "reviewer": "ann"} for kind in ("undo", "skip"))
    path = tmp_path / "l.jsonl"
    for lines, kinds in (((label, undo), []), ((label, undo, skip), ["skip"]), ((label, skip), ["skip"])):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert [each.kind for each in standing(DecisionLog(path).decisions).values()] == kinds


def test_the_text_column_is_the_runs(
    tiny_bundle: Bundle, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another of the input's columns was compared if it was called `request`."""
    table, scored, labels = (tmp_path / name for name in ("in.parquet", "out.parquet", "l.jsonl"))
    rows = {
        "id": ["a", "b"],
        "request": ["Re: 1", "Re: 2"],
        "body": ["Find our travel policy.", "Book a room."],
    }
    pl.DataFrame(rows).write_parquet(table)
    adapter = str(tiny_bundle.path)
    run(Options(str(table), str(scored), adapter=adapter, text_column="body", engine="replay"), Observer())
    assert [text_column_of(scored, name) for name in (None, "request", "nosuch")] == [
        "body",
        "request",
        "nosuch",
    ]
    assert text_column_of(table, None) == "request"
    pl.read_parquet(table).drop("request").write_parquet(table)
    assert text_column_of(table, None) is None

    gold = tmp_path / "gold.jsonl"
    text = "".join(
        json.dumps({**GOLD[0], "id": i, "request": body}) + "\n"
        for i, body in zip(rows["id"], rows["body"], strict=True)
    )
    gold.write_text(text)
    assert invoke("eval", gold, "--from-scored", scored, *CONTRACT).exit_code == 0
    assert (
        "another request"
        in invoke("eval", gold, "--from-scored", scored, "--text-column", "request", *CONTRACT).output
    )
    lines = [{**json.loads(line), "decision": "label", "reviewer": "ann"} for line in text.splitlines()]
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = invoke("apply-reviews", scored, labels, tmp_path / "final.parquet", *CONTRACT)
    assert done.exit_code == 0 and "2 answered by people" in done.output
    shown: list[Any] = []
    monkeypatch.setattr("train.commands.review.serve", lambda session, *_: shown.append(session))
    assert invoke("review", scored, "--labels", tmp_path / "new.jsonl", *CONTRACT).exit_code == 0
    assert {shown[0].item(name)["request"] for name in rows["id"]} == set(rows["body"])


def test_the_adapter_of_an_output_is_found_in_one_way(
    output: Output, contract: Contract, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged one was "not in the registry", or stopped what did not need it; one without a threshold had a target."""
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "adapters"))
    registry = Registry()
    folder = Path(shutil.copytree(tiny_bundle.path, registry.staging(), dirs_exist_ok=True))
    facts = {"calibrated": True, "fields": {}, "threshold": None, "target_error": 0.05}
    (folder / "calibration.json").write_text(json.dumps(facts))
    seal_bundle(folder, {key: value for key, value in tiny_bundle.manifest.items() if key != "files"})
    bundle, labels = registry.add(folder), tmp_path / "l.jsonl"
    scored, gold = output(3, auto=3), tmp_path / "gold.jsonl"
    pl.read_parquet(scored).with_columns(adapter=pl.lit(bundle.digest)).write_parquet(scored)
    rows = [
        {**each, "id": f"r{i}", "request": f"{each['request']} Case {i}."} for i, each in enumerate(GOLD[:3])
    ]
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels.write_text(
        "".join(json.dumps({**row, "decision": "label", "reviewer": "ann"}) + "\n" for row in rows)
    )
    refused = invoke("audit", scored, "--labels", labels)
    assert refused.exit_code == 2 and "no threshold" in refused.output and "--target-error" in refused.output
    line = (
        ("audit", scored, "--labels", labels, "--target-error", "0.1"),
        ("eval", gold, "--from-scored", scored),
    )
    assert [invoke(*each).exit_code for each in line] == [0, 0]
    (bundle.path / "metrics.json").write_text("damaged")
    for each in line:
        damaged = invoke(*each)
        assert damaged.exit_code == 2 and "metrics.json differs from its sha256" in damaged.output
        assert invoke(*each, *CONTRACT).exit_code == 0
