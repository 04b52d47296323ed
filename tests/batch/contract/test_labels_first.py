"""An answer in two parts: what the labels are read by, and what may follow them."""

import re
from typing import Any

import pytest

from batch.contract.contract import Contract
from batch.contract.labels_first import LabelsFirst, labels_first
from batch.errors import ContractError
from tests.conftest import ROOT

LABEL = {"name": "kind", "type": "label", "labels": {"a": "", "a (b)": "", "größe": ""}}
FLAG = {"name": "flag", "type": "boolean"}
GROUND = {"name": "ground", "type": "text", "min_chars": 2, "max_chars": 9}
MATTER = {"name": "matter", "type": "text", "min_chars": 1, "max_chars": 4, "ascii": False}
OPEN = {"when": {"f": 1}, "then": {"flag": True}}


def contract(*fields: dict[str, Any]) -> Contract:
    return Contract.from_dict({"name": "t", "prompt": {"system": "{fields}"}, "fields": list(fields)})


CONTRACTS = [
    Contract.load(ROOT / "data/contract.toml"),
    contract(FLAG, LABEL, GROUND, MATTER),
    contract(LABEL, FLAG, MATTER),
]


@pytest.mark.parametrize("contract", CONTRACTS)
def test_labels_are_read_wherever_the_answer_stops_behind_them(contract: Contract) -> None:
    first = LabelsFirst(contract)
    for answer in contract.sample_answers():
        text = contract.serialise(answer)
        whole, spans = contract.parse(text)
        labels = first.labels(text)
        assert text.startswith(labels) and re.fullmatch(first.expression, labels)
        for stop in range(len(labels), len(text) + 1):
            assert first.labels(text[:stop]) == labels
            found, places = first.parse(text[:stop])
            assert places == spans
            assert found == {name: value if name in spans else None for name, value in whole.items()}
        assert first.labels(text[: len(labels) - 1]) == ""


@pytest.mark.parametrize("contract", CONTRACTS)
def test_what_follows_makes_the_answer_whole(contract: Contract) -> None:
    first = LabelsFirst(contract)
    for answer in contract.sample_answers():
        text = contract.serialise(answer)
        labels = first.labels(text)
        for kept in range(len(labels) + 1):
            assert re.fullmatch(first.rest(labels, labels[:kept]), text[kept:])
        assert not re.fullmatch(first.rest(labels, labels), text[len(labels) :] + "}")


def test_a_field_that_the_policy_table_leaves_open_has_labels_too() -> None:
    raw = {**contract(FLAG, LABEL, GROUND).raw, "policy": {"facts": {"f": [1]}, "table": [OPEN]}}
    whole = Contract.from_dict(raw)
    assert LabelsFirst(whole).labels('{"flag":true,"kind":"a","gro') == '{"flag":true,"kind":"a"'


def test_a_text_in_front_of_a_label_is_refused() -> None:
    with pytest.raises(ContractError, match=r"field 'ground' is a text in front of a label.*--reasons"):
        LabelsFirst(contract(LABEL, GROUND, FLAG))


def test_an_answer_without_texts_or_with_all_of_them_is_whole() -> None:
    assert labels_first(contract(LABEL, FLAG), "none") is None
    assert labels_first(contract(GROUND, LABEL), "all") is None
    assert labels_first(contract(LABEL, GROUND), "human") is not None
