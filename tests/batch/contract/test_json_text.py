"""JSON that every reader takes: a number that JSON does not know is refused by whatever writes."""

import copy
import datetime
import math
from collections.abc import Callable
from typing import Any

import pytest

from batch.contract.contract import Contract
from batch.contract.json_text import as_json, compact_json, json_line, parse_json, pretty_json
from batch.errors import ContractError

WRITERS = (as_json, compact_json, json_line, pretty_json)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_of_jsons_is_refused(write: Callable[[Any], object], number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write({"deep": [{"down": number}]})


@pytest.mark.parametrize("write", [compact_json, json_line, pretty_json])
def test_what_is_written_is_read_back(write: Callable[[Any], str | bytes]) -> None:
    value = {"é": [1, 2.5, None, True, "a\nb"], "1e300": 1e300}
    assert parse_json(write(value)) == value
    assert as_json({1: (2, 3)}) == {"1": [2, 3]}


@pytest.mark.parametrize("value", [math.nan, datetime.date(2026, 11, 1)])
def test_a_contract_holds_only_what_its_bundle_can_keep(contract: Contract, value: object) -> None:
    """`[contrast]` is read late, by what measures bias; TOML has dates and NaN, and JSON has neither."""
    raw = copy.deepcopy(dict(contract.raw))
    raw["contrast"] = {"generic": [value]}
    with pytest.raises(ContractError, match=r"\[contrast\] holds a value that JSON does not have"):
        Contract.from_dict(raw)
