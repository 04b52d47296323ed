"""An append-only file that loses nothing and that training reads."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from batch.contract.contract import Contract
from batch.errors import DatasetError
from tests.conftest import ROOT
from train.dataset import load_rows, read_rows
from train.decisions import DecisionLog, standing

GOLD = [json.loads(line) for line in (ROOT / "data/v2/train.jsonl").read_text().splitlines()]


def decision(row: int, kind: str = "label", reviewer: str = "ann", **more: Any) -> dict[str, Any]:
    content = GOLD[row] if kind == "label" else {key: GOLD[row][key] for key in ("id", "request")}
    return {
        **content,
        "decision": kind,
        "reviewer": reviewer,
        "reviewed_at": "2026-11-26T10:00:00+00:00",
        **more,
    }


def written(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_latest_decision_stands_and_undo_takes_it_back(tmp_path: Path) -> None:
    path = written(
        tmp_path / "l.jsonl",
        *(
            decision(0, "skip"),
            decision(0),
            decision(1),
            decision(1, "undo"),
            decision(2, "undo"),
            decision(3),
            decision(3, "undo"),
            decision(3, "undo"),
        ),
    )
    found = standing(DecisionLog(path).decisions)
    assert {name: each.kind for ((name, _), _), each in found.items()} == {GOLD[0]["id"]: "label"}


def test_a_file_of_decisions_is_a_dataset(tmp_path: Path, contract: Contract) -> None:
    path = written(
        tmp_path / "l.jsonl",
        *(
            decision(0, "unsure", note="?"),
            decision(1),
            decision(2),
            decision(2, "undo"),
            decision(1, reviewer="bo"),
            decision(3),
        ),
    )
    rows = load_rows(path, contract)
    assert [row.id for row in rows] == [GOLD[1]["id"], GOLD[3]["id"]]
    assert [row.line for row in rows] == [5, 6]


def test_reviewers_who_differ_are_no_row(tmp_path: Path, contract: Contract) -> None:
    other = next(row for row in GOLD if row["risk"] != GOLD[0]["risk"])
    line = {
        **decision(0, reviewer="bo"),
        **{key: other[key] for key in ("tier", "risk", "recommended_platform", "needs_review", "facts")},
    }
    found = list(read_rows(written(tmp_path / "l.jsonl", decision(0), line), contract))
    assert len(found) == 1 and isinstance(found[0], DatasetError)
    assert "ann and bo gave request" in str(found[0])


def test_a_torn_line_is_cut_and_nothing_before_it(tmp_path: Path) -> None:
    path = written(tmp_path / "l.jsonl", decision(0))
    with path.open("a") as file:
        file.write('{"id": "half')
    log = DecisionLog(path)
    assert log.add(decision(1), known=0)
    log.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [
        GOLD[0]["id"],
        GOLD[1]["id"],
    ]


def test_two_windows_do_not_overwrite_each_other(tmp_path: Path) -> None:
    first, second = DecisionLog(tmp_path / "l.jsonl"), DecisionLog(tmp_path / "l.jsonl")
    assert first.add(decision(0), known=0)
    assert not second.add(decision(0, "skip"), known=0)
    assert second.add(decision(0, reviewer="bo"), known=0)
    assert second.add(decision(0, "undo"), known=1)
    assert len((tmp_path / "l.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "content", ["id,request\n", '{"id": "1", "request": "no decision"}\n', '{"decision": "maybe"}\n', "[]\n"]
)
def test_a_foreign_file_is_refused_and_stays(tmp_path: Path, content: str) -> None:
    path = tmp_path / "foreign.csv"
    path.write_text(content)
    with pytest.raises(DatasetError, match=r"foreign\.csv:1"):
        DecisionLog(path)
    assert path.read_text() == content


def test_only_the_user_can_read_it(tmp_path: Path) -> None:
    DecisionLog(tmp_path / "l.jsonl").close()
    assert os.stat(tmp_path / "l.jsonl").st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content",
    [
        b"my notes, one line",
        b"my notes,\ntwo lines",
        b"PAR1\x15\x04\n\x00\xffmiddle\n\x00PAR1",
        b"PAR1\x15\x04\x00PAR1",
        b'{"id": "1", "request": "no decision"}',
        b'{"id": "1", "request": "no decision"}\n{"id": "2", "request": "nor here"}',
        b"{ notes in braces",
        b"[]",
    ],
)
def test_a_foreign_file_is_never_shortened(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"foreign:1: "):
        DecisionLog(path)
    assert path.read_bytes() == content


def test_a_row_that_is_no_decision_stays_behind_decisions_too(tmp_path: Path) -> None:
    path = written(tmp_path / "l.jsonl", decision(0))
    path.write_text(before := path.read_text() + json.dumps(GOLD[1]))
    with pytest.raises(DatasetError, match=r"l\.jsonl:2: is not a reviewer's decision"):
        DecisionLog(path)
    assert path.read_text() == before


@pytest.mark.parametrize("count", [1, 3])
def test_a_last_decision_without_its_line_end_gets_it(tmp_path: Path, count: int) -> None:
    path = written(tmp_path / "l.jsonl", *(decision(row) for row in range(count)))
    whole = path.read_bytes()
    path.write_bytes(whole.removesuffix(b"\n"))
    log = DecisionLog(path)
    assert path.read_bytes() == whole and len(log.decisions) == count
    assert log.add(decision(4), known=0)
    assert path.read_bytes().startswith(whole) and len(log.decisions) == count + 1


@pytest.mark.parametrize("torn", [b"{", b'{"id": "half', '{"id": "hälf'.encode()[:-3]])
def test_a_torn_line_with_no_decision_before_it_may_be_anyones(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "l.jsonl"
    path.write_bytes(torn)
    with pytest.raises(DatasetError, match=r"l\.jsonl:1: is not a reviewer's decision"):
        DecisionLog(path)
    assert path.read_bytes() == torn


@pytest.mark.parametrize("end", ["\r", ""])
def test_rows_that_no_line_feed_parts_are_never_cut(tmp_path: Path, end: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content := (json.dumps(GOLD[0]) + end) * 2, newline="")
    with pytest.raises(DatasetError, match=r"mine\.jsonl:1: is not a reviewer's decision"):
        DecisionLog(path)
    assert path.read_bytes() == content.encode()


def test_what_another_process_left_torn_does_not_spoil_the_next_decision(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    log = DecisionLog(path)
    with path.open("a") as file:
        file.write('{"id": "half')
    assert log.add(decision(0), known=0)
    assert [json.loads(line)["id"] for line in path.read_text().split("\n")[:-1]] == [GOLD[0]["id"]]


def test_tabs_that_save_at_once_part_the_requests_among_them(tmp_path: Path) -> None:
    """The server's threads share one descriptor, on which the file's lock excludes none of them."""
    tabs, path = 4, tmp_path / "l.jsonl"
    log, together = DecisionLog(path), Barrier(tabs)

    def save(_: int) -> int:
        together.wait()
        return sum(log.add(decision(row, "skip"), known=0) for row in range(60))

    with ThreadPoolExecutor(tabs) as pool:
        saved = sum(pool.map(save, range(tabs)))
    names = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert saved == 60 and sorted(names) == sorted(GOLD[row]["id"] for row in range(60))
    assert [each.asked[0] for each in log.decisions] == names
