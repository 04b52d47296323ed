"""Labelled requests: every way in which a row is refused names its file and line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from batch.adapter.bundle import Bundle
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.contract.field_types import RESERVED
from batch.errors import DatasetError
from train import decisions
from train.dataset import NOTES, check_splits, load_rows, split_path
from train.examples import check_lengths, encode
from train.likeness import NEAR_DUPLICATE
from train.review.apply import ANSWERED_BY

ROOT = Path(__file__).parents[2]
FACTS = {"need": "analytics", "writes": False, "autonomous": False, "regulated": False, "system": "none"}
ROW: dict[str, Any] = {
    "id": "a",
    "request": "A sales analyst wants to query opportunity data with SQL and build a dashboard of pipeline trends for each region.",
    "tier": "Trusted Technical Analyst",
    "risk": "medium",
    "recommended_platform": "Databricks + governed dashboarding",
    "needs_review": True,
    "reason": "The request requires SQL and a dashboard over business data.",
    "facts": FACTS,
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in ROW.items() if key not in keys}


def test_v1_is_the_first_experiments_size_and_clean(contract: Contract) -> None:
    splits = {
        name: load_rows(ROOT / f"data/v1/{name}.jsonl", contract) for name in ("train", "validation", "test")
    }
    assert [len(rows) for rows in splits.values()] == [24, 4, 4]
    check_splits(splits)
    check_splits({**splits, "regression": load_rows(ROOT / "data/regression.jsonl", contract)})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "tier": "Trusted Technical Analist"}, "tier is .*did you mean 'Trusted Technical Analyst'"),
        ({**ROW, "needs_review": "true"}, "needs_review is 'true', not true or false"),
        ({**ROW, "needs_review": 1}, "needs_review is 1, not true or false"),
        ({**ROW, "reason": 'It says "no".'}, "reason must be 10 to 160"),
        ({**ROW, "risk": "high"}, "risk is 'high', but the policy table gives 'medium'"),
        ({**without("facts"), "risk": "low"}, "no facts lead to"),
        ({**ROW, "facts": {**FACTS, "need": "sql"}}, "fact 'need' is 'sql'"),
        ({**ROW, "facts": "none"}, "facts is not a JSON object"),
        (without("risk"), "missing key 'risk'; add it"),
        (without("id"), "missing key 'id'"),
        (without("reason"), "missing key 'reason'"),
        ({**ROW, "requets": "x"}, r"unknown key 'requets' \(did you mean 'request'\?\)"),
        ({**ROW, "request": " \n"}, "request must be a text that is not blank"),
        ({**ROW, "request": 7}, "request must be a text"),
        (
            {**ROW, "request": "x" * 8001},
            "the request has 8001 characters, the contract accepts 8000; shorten it",
        ),
        ({**ROW, "tier": float("nan")}, r"tier holds a value that JSON does not have, nan"),
        (json.dumps(ROW).replace('"medium"', "1e999"), "risk holds a value that JSON does not have, inf"),
        (
            {**ROW, "facts": {**FACTS, "need": float("-inf")}},
            "facts holds a value that JSON does not have, .*-inf",
        ),
        ({**ROW, "request": "\ud800"}, "not valid UTF-8"),
        ({**ROW, "id": "\ud800"}, "id holds a value that JSON does not have"),
        ({**ROW, "facts": {**FACTS, "need": "\ud800"}}, "facts holds a value that JSON does not have"),
        ("{'id': 1}", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"id": "a", "id": "b"}', "key 'id' is duplicated"),
        ({**ROW, "request": "Another one."}, "id 'a' is also at .*rows.jsonl:1"),
        ({**ROW, "id": "b", "request": ROW["request"].upper()}, "the request is also at .*rows.jsonl:1"),
    ],
)
def test_a_wrong_row_is_refused_with_file_and_line(
    tmp_path: Path, contract: Contract, row: Any, message: str
) -> None:
    path = write(tmp_path / "rows.jsonl", ROW, "", row)
    with pytest.raises(DatasetError, match=rf"rows\.jsonl:3: .*{message}"):
        load_rows(path, contract)


def test_a_missing_empty_or_binary_file_is_refused(tmp_path: Path, contract: Contract) -> None:
    with pytest.raises(DatasetError, match="no dataset at"):
        load_rows(tmp_path / "none.jsonl", contract)
    with pytest.raises(DatasetError, match="holds no rows"):
        load_rows(write(tmp_path / "empty.jsonl", ""), contract)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="save it as UTF-8"):
        load_rows(tmp_path / "binary.jsonl", contract)


def test_notes_are_ignored_and_evaluation_rows_may_be_bare(tmp_path: Path, contract: Contract) -> None:
    noted = {**without("id", "reason", "facts"), "probe": "sql", "family": 3, "source": None}
    (row,) = load_rows(write(tmp_path / "rows.jsonl", noted), contract, evaluation=True)
    assert row.id == "line 1" and "reason" not in row.answer and row.answer["risk"] == "medium"
    with pytest.raises(DatasetError, match="missing key 'tier'"):
        load_rows(write(tmp_path / "rows.jsonl", without("tier")), contract, evaluation=True)


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [
        ("sales", "sales", True),  # the same
        ("sales", "retail", True),  # one word changed
        ("build a dashboard", "draw a report", True),  # two of 19 words
        (
            "query opportunity data with SQL and build a dashboard of pipeline trends",
            "find the travel policy",
            False,
        ),
    ],
)
def test_near_duplicates_across_splits(
    tmp_path: Path, contract: Contract, old: str, new: str, refused: bool
) -> None:
    assert NEAR_DUPLICATE == 0.6
    first = load_rows(write(tmp_path / "train.jsonl", ROW), contract)
    other = {**ROW, "id": "b", "request": ROW["request"].replace(old, new)}
    second = load_rows(write(tmp_path / "test.jsonl", other), contract)
    if refused:
        with pytest.raises(
            DatasetError,
            match=r"test\.jsonl:1: the request is nearly that of .*train\.jsonl:1 in the train split",
        ):
            check_splits({"train": first, "test": second})
    else:
        check_splits({"train": first, "test": second})


def test_contrast_pairs_within_a_split_are_allowed(tmp_path: Path, contract: Contract) -> None:
    other = {**ROW, "id": "b", "request": ROW["request"].replace("sales", "retail")}
    check_splits({"train": load_rows(write(tmp_path / "train.jsonl", ROW, other), contract)})


def test_an_id_in_two_splits_is_refused(tmp_path: Path, contract: Contract) -> None:
    first = load_rows(write(tmp_path / "train.jsonl", ROW), contract)
    second = load_rows(write(tmp_path / "test.jsonl", {**ROW, "request": "Quite another one."}), contract)
    with pytest.raises(DatasetError, match="id 'a' is also at"):
        check_splits({"train": first, "test": second})


def test_a_request_of_too_many_tokens_is_refused_not_cut(
    tmp_path: Path, tiny_base: Path, contract: Contract
) -> None:
    rows = load_rows(
        write(tmp_path / "rows.jsonl", ROW, {**ROW, "id": "b", "request": "7 " * 1500}), contract
    )
    with pytest.raises(
        DatasetError,
        match=r"rows\.jsonl:2: the request has \d+ tokens, the contract accepts 1024; shorten it",
    ):
        encode(rows, Renderer.load(tiny_base, contract))
    longer = dataclasses.replace(rows[1], id="c", request="8 " * 1500)
    with pytest.raises(
        DatasetError, match=r"1024, which 2 requests exceed; shorten it, or raise \[input\] max_tokens"
    ):
        check_lengths([*rows, longer], Renderer.load(tiny_base, contract))


def test_no_field_may_have_the_name_of_a_rows_other_keys() -> None:
    read = (NOTES | decisions.KEYS) - {"why", "note", "family", "source"}  # those are only for people
    assert {"id", "request", "facts", ANSWERED_BY} | read <= RESERVED


@pytest.mark.parametrize("facts", ["x", {"path": "train.jsonl"}])
def test_a_manifest_that_names_no_file_is_refused(tiny_bundle: Bundle, facts: Any) -> None:
    bundle = dataclasses.replace(tiny_bundle, manifest={"data": {"train": facts}})
    with pytest.raises(DatasetError, match="does not say which file its train split is; name a dataset"):
        split_path(bundle, "train")
