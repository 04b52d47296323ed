"""The server's side: what is asked, what is accepted, who may."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from batch.contract.contract import Contract
from batch.errors import InvalidAnswer
from tests.conftest import ROOT
from tests.train.review.conftest import Output
from train.cli import main
from train.dataset import load_rows
from train.decisions import DecisionLog
from train.review.app import build_app
from train.review.queue import Item, Selection, drawn, read_items
from train.review.session import Session

SECRET = "s3cret"
GOLD = [json.loads(line) for line in (ROOT / "data/v2/train.jsonl").read_text().splitlines()]


class Page:
    """A client that speaks as the page does."""

    def __init__(
        self, scored: Path, contract: Contract, labels: Path, reviewer: str = "ann", **selection: Any
    ) -> None:
        items = read_items(scored, contract, Selection(**selection), "seed")
        examples = load_rows(ROOT / "data/v2/train.jsonl", contract)
        app = build_app(Session(items, contract, DecisionLog(labels), reviewer, examples), SECRET)
        self.http = TestClient(app, base_url="http://127.0.0.1:8000")

    def get(self, path: str, **query: str) -> Any:
        return self.http.get(f"/{SECRET}/api/{path}", params=query).json()

    def decide(self, name: str, decision: str = "label", **content: Any) -> Any:
        known = self.get("item", id=name)["known"]
        line = {"decision": decision, "id": name, "known": known, **content}
        return self.http.post(f"/{SECRET}/api/decide", json=line, headers={"x-review-secret": SECRET})


def label(row: dict[str, Any]) -> dict[str, Any]:
    return {"facts": row["facts"], "answer": {"reason": row["reason"]}}


def test_what_needs_no_person_is_left_out_but_for_the_audit(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    scored = output(400, auto=300)
    assert len(read_items(scored, contract, Selection(), "a")) == 100
    audited = [item for item in read_items(scored, contract, Selection(audit=0.1), "a") if item.audit]
    assert 10 < len(audited) < 60
    assert [i.id for i in audited] == [
        i.id for i in read_items(scored, contract, Selection(audit=0.1), "a") if i.audit
    ]
    assert {i.id for i in audited} != {
        i.id for i in read_items(scored, contract, Selection(audit=0.1), "b") if i.audit
    }
    assert sum(drawn("s", str(i), 0.25) for i in range(4000)) == pytest.approx(1000, abs=120)


def test_an_audit_holds_no_more_in_memory_than_it_asks_about(output: Output, contract: Contract) -> None:
    """As Python's objects: the rows themselves are in Arrow's memory, which is not counted here."""
    scored, peaks = output(4000, auto=4000), []
    for audit in (0.0, 0.02):
        read_items(scored, contract, Selection(audit=audit), "s")  # what is loaded once is
        tracemalloc.start()
        items = read_items(scored, contract, Selection(audit=audit), "s")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(items) == 67 and peaks[1] < 1.2 * peaks[0]


def test_facts_decide_the_labels_and_the_row_lints_clean(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    page = Page(output(3), contract, tmp_path / "l.jsonl", order="queue")
    assert page.get("state")["next"] == ["r0", "r1", "r2"]
    shown = page.get("item", id="r0")
    assert shown["facts"] == GOLD[0]["facts"] and shown["answer"]["tier"] == GOLD[0]["tier"]
    assert page.decide("r0", **label(GOLD[0])).status_code == 200
    rows = load_rows(tmp_path / "l.jsonl", contract)
    assert rows[0].facts == GOLD[0]["facts"] and rows[0].answer["risk"] == GOLD[0]["risk"]
    line = json.loads((tmp_path / "l.jsonl").read_text())
    assert (
        line["reviewer"] == "ann"
        and line["suggested"]["tier"] == GOLD[0]["tier"]
        and line["adapter"] == "0" * 64
    )
    result = CliRunner().invoke(
        main, ["lint", str(tmp_path / "l.jsonl"), "--contract", str(ROOT / "data/contract.toml")]
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({}, "the answer is missing"),
        ({"answer": {}, "facts": {"need": "build"}}, "missing fact"),
        ({"answer": {"reason": "short"}, "facts": GOLD[0]["facts"]}, "reason"),
        ({"answer": {"reason": 'said "so" to us'}, "facts": GOLD[0]["facts"]}, "reason"),
        ({"answer": {**GOLD[0], "risk": "severe"}}, "risk"),
    ],
)
def test_an_answer_that_training_would_refuse_is_refused_here(
    output: Output, contract: Contract, tmp_path: Path, content: dict[str, Any], why: str
) -> None:
    page = Page(output(1), contract, tmp_path / "l.jsonl")
    response = page.decide("r0", **content)
    assert response.status_code == 422 and why in response.json()["error"]
    assert (tmp_path / "l.jsonl").read_text() == ""


def test_undo_skip_unsure_and_going_through_them_again(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    page = Page(output(3), contract, tmp_path / "l.jsonl", order="queue")
    page.decide("r0", "skip")
    page.decide("r1", "unsure", note="which system?")
    assert page.get("state") == {"left": 1, "next": ["r2"], "done": {"skip": 1, "unsure": 1}, "last": "r1"}
    assert page.get("item", id="r1")["decision"]["note"] == "which system?"
    page.decide("r1", "undo")
    assert page.get("state")["next"] == ["r1", "r2"]
    assert page.get("state", again="1")["next"] == ["r0", "r1", "r2"]


def test_a_second_reviewer_reads_the_overlap_blind(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    scored = output(40)
    ann = Page(scored, contract, tmp_path / "l.jsonl", overlap=0.3)
    for name in list(ann.get("state")["next"]):
        ann.decide(name, **label(GOLD[int(name[1:])]))
    bo = Page(scored, contract, tmp_path / "l.jsonl", reviewer="bo", overlap=0.3)
    left = 40 - 20
    state = bo.get("state")
    assert left < state["left"] < 40  # what ann left, and some of what she decided
    items = [bo.get("item", id=name) for name in state["next"]]
    blind = [item for item in items if item["blind"]]
    hidden = ("answer", "scores", "seconds", "facts")
    assert blind and all(not item[part] for item in blind for part in hidden)


def test_the_runner_up_is_shown_where_it_is_known(output: Output, contract: Contract, tmp_path: Path) -> None:
    item = Page(output(1), contract, tmp_path / "l.jsonl").get("item", id="r0")
    other = "low" if item["answer"]["risk"] == "medium" else "medium"
    assert item["seconds"] == {"risk": [other, 0.08]}


def test_what_a_colleague_left_undecided_is_still_asked(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    """It was hidden from all others, with the note."""
    scored, labels = output(3), tmp_path / "l.jsonl"
    ann, bo = (Page(scored, contract, labels, reviewer, order="queue") for reviewer in ("ann", "bo"))
    ann.decide("r0", "skip")
    ann.decide("r1", "unsure", note="which system?")
    ann.decide("r2", **label(GOLD[2]))
    assert bo.get("state")["next"] == ["r0", "r1"]
    assert any("ann" in why and "which system?" in why for why in bo.get("item", id="r1")["why"])
    bo.decide("r1", **label(GOLD[1]))
    assert ann.get("state", again="1")["next"] == ["r0", "r1"]


def test_an_optional_field_that_nobody_answered_is_not_null(tmp_path: Path) -> None:
    labels = {"type": "label", "labels": {"a": "", "b": ""}}
    fields = [{"name": "kind", **labels}, {"name": "team", "optional": True, **labels}]
    policy = {"facts": {"sure": [True, False]}, "table": [{"when": {}, "then": {"kind": "a"}}]}
    raw = {"name": "open", "prompt": {"system": "{fields}"}, "fields": fields, "policy": policy}
    item = Item("r0", "It is broken.", {}, {}, {}, None, ())
    session = Session([item], Contract.from_dict(raw), DecisionLog(tmp_path / "l.jsonl"), "ann")
    with pytest.raises(InvalidAnswer, match="team"):
        session.decide("label", "r0", 0, {"answer": {}, "facts": {"sure": True}})
    session.decide("label", "r0", 0, {"answer": {"team": None}, "facts": {"sure": True}})
    (row,) = load_rows(tmp_path / "l.jsonl", Contract.from_dict(raw))
    assert row.answer == {"kind": "a", "team": None}


def test_another_window_is_told_that_it_is_late(output: Output, contract: Contract, tmp_path: Path) -> None:
    page = Page(output(1), contract, tmp_path / "l.jsonl")
    line = {"decision": "skip", "id": "r0", "known": 0}
    codes = [
        page.http.post(f"/{SECRET}/api/decide", json=line, headers={"x-review-secret": SECRET}).status_code
        for _ in range(2)
    ]
    assert codes == [200, 409]


def test_another_site_cannot_post_read_or_frame(output: Output, contract: Contract, tmp_path: Path) -> None:
    http = Page(output(1), contract, tmp_path / "l.jsonl").http
    line = {"decision": "skip", "id": "r0", "known": 0}
    address, secret = f"/{SECRET}/api/decide", {"x-review-secret": SECRET}
    assert http.post(address, json=line).status_code == 403
    assert http.post(address, json=line, headers={"x-review-secret": "guess"}).status_code == 403
    assert (
        http.post(address, json=line, headers={**secret, "origin": "http://evil.example"}).status_code == 403
    )
    assert http.post(address, data={"decision": "skip"}).status_code == 403
    assert http.get(f"/{SECRET}/", headers={"host": "evil.example:8000"}).status_code == 404
    assert http.get("/guess/").status_code == 404 and http.get("/").status_code == 404
    assert (
        http.get(f"/{SECRET}/../app.py").status_code == 404
        and http.get(f"/{SECRET}/app.py").status_code == 404
    )
    page = http.get(f"/{SECRET}/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY" and "access-control-allow-origin" not in page.headers
    for body in (b"x" * (2 << 20), b"[1]", b"{}", b"[" * 100_000):
        assert http.post(address, content=body, headers=secret).status_code == 400
    assert (tmp_path / "l.jsonl").read_text() == ""


def test_fields_named_as_a_decisions_own_keys_keep_their_labels(tmp_path: Path) -> None:
    contract = Contract.from_dict(
        {
            "name": "notes",
            "prompt": {"system": "Sort it by {fields}."},
            "fields": [
                {"name": "note", "type": "label", "labels": {"complaint": "a", "praise": "b"}},
                {"name": "why", "type": "text"},
            ],
        }
    )
    item = Item(
        "r0", "It is broken.", {"note": "praise", "why": "x"}, {"note": 0.1}, {}, None, ("score 0.10",)
    )
    session = Session([item], contract, DecisionLog(tmp_path / "l.jsonl"), "ann", [])
    given = {"answer": {"note": "complaint", "why": "My own words."}, "note": "I am torn"}
    session.decide("label", "r0", 0, given)
    (row,) = load_rows(tmp_path / "l.jsonl", contract)
    assert row.answer == {"note": "complaint", "why": "My own words."}
