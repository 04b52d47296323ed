"""A record that is not as it was written is seen, whatever changed; one that was only laid out anew is not."""

import json
from typing import Any

import pytest

from batch.contract.json_text import fits, pretty_json
from batch.reporting.summary import Summary
from batch.reporting.tally import Tally
from batch.storage.manifest import MANIFEST
from batch.storage.records import DIGEST, JOB, TALLY, sealed, unsealed
from tests.batch.storage.examples import FACTS, manifest

VALUES = {"é": "\u2028 \U0001f600", "b": [1, 1.0, 0.1 + 0.2, 1e-300, -0.0], "a": {"10": None, "9": True}}


def test_the_layout_does_not_matter() -> None:
    record = sealed(VALUES)
    turned = {name: record[name] for name in reversed(record)}
    for text in (pretty_json(record), json.dumps(turned), json.dumps(turned, indent=4)):
        assert unsealed(text, {str: object}) == VALUES
    assert sealed(record) == record and sealed({"a": (1, 2)})[DIGEST] == sealed({"a": [1, 2]})[DIGEST]


@pytest.mark.parametrize(
    "change",
    [
        {"é": "\u2028"},
        {"b": [1, 1.0, 0.3, 1e-300, -0.0]},
        {"b": [1, 1, 0.1 + 0.2, 1e-300, -0.0]},
        {"a": {"10": None, "9": 1}},
        {"new": None},
        {"b": [float("nan")]},
        {"b": [float("inf")]},
        {DIGEST: None},
        {DIGEST: "0" * 64},
    ],
    ids=str,
)
def test_a_change_of_anything_is_seen(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        unsealed(json.dumps({**sealed(VALUES), **change}), {str: object})


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "null", "{}", "[" * 200_000, '{"a":' * 900 + "1" + "}" * 900]
)
def test_what_is_no_record(text: str) -> None:
    with pytest.raises(ValueError):
        unsealed(text, {str: object})


@pytest.mark.parametrize(
    ("shape", "yes", "no"),
    [
        (int, [0, -1], [1.0, "1", None]),
        (None, [None], [0, False, ""]),
        ((int, None), [1, None], ["x", []]),
        ([int], [[], [1, 2]], [[1, "x"], {}, 1]),
        ({str: int}, [{}, {"a": 1}], [{"a": "x"}, [], None]),
        ({"a": int, "b?": str}, [{"a": 1}, {"a": 1, "b": "x", "c": None}], [{}, {"a": 1, "b": None}, []]),
        (TALLY, [Tally(rows=3, score_sum=0.5).as_json()], [{}, {**Tally().as_json(), "errors": {"x": "1"}}]),
        (JOB, [FACTS], [{**FACTS, "limit": "5"}, {**FACTS, "text_column": None}]),
    ],
)
def test_shapes(shape: Any, yes: list[Any], no: list[Any]) -> None:
    assert all(fits(value, shape) for value in yes)
    assert not any(fits(value, shape) for value in no)


def test_a_summary_has_its_shape() -> None:
    told = json.loads(manifest())
    unsealed(json.dumps(sealed({**told, "run": Summary().as_json()})), MANIFEST)
