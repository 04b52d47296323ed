"""Types of fields: each one's legal values, its JSON text, what the engine's automaton and the parser make of it."""

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.contract.contract import Contract
from batch.contract.field_types import TYPES, read_field
from batch.contract.label_fields import Labels
from batch.engine.automaton import DEAD, Automaton
from batch.errors import ContractError, InvalidAnswer
from tests.conftest import ROOT

TICKETS = Contract.load(ROOT / "tests/data/tickets/contract.toml")
GOLD = '{"trades":["plumber","glazier"],"severity":4,"floor":null,"note":"Wasser läuft"}'
OTHERS = [
    GOLD.replace('["plumber","glazier"]', "[]"),
    GOLD.replace('["plumber","glazier"]', '["plumber","electrician","glazier","locksmith"]'),
    GOLD.replace("null", '"roof"').replace("4", "1"),
    GOLD.replace("Wasser läuft", "\u00a0\u2028\ue000\uffff\U0010ffff"),
]
REJECTED = {
    "other order": ('["plumber","glazier"]', '["glazier","plumber"]'),
    "twice": ('["plumber","glazier"]', '["plumber","plumber"]'),
    "unknown label": ("glazier", "painter"),
    "a label for a set": ('["plumber","glazier"]', '"plumber"'),
    "null for a set": ('["plumber","glazier"]', "null"),
    "comma before": ('["plumber",', '[,"plumber",'),
    "comma behind": ('"glazier"]', '"glazier",]'),
    "a space between": (',"glazier"', ', "glazier"'),
    "number as text": ("4", '"4"'),
    "number out of range": ("4", "6"),
    "fraction": ("4", "4.0"),
    "leading zero": ("4", "04"),
    "null for a number": ("4", "null"),
    "null as text": ("null", '"null"'),
    "none of these as text": ("null", '"none of these"'),
    "upper-case null": ("null", "Null"),
    "C1 control": ("Wasser", "Wa\x85er"),
    "half a surrogate pair": ("Wasser", "Wa\ud800er"),
}


@pytest.fixture(scope="module")
def automaton() -> Automaton:
    return Automaton(TICKETS.grammar)


def accepts(automaton: Automaton, text: str) -> bool:
    state = automaton.walk(0, text.encode(errors="surrogatepass"))
    return state != DEAD and bool(automaton.final[state])


@pytest.mark.parametrize("text", [GOLD, *OTHERS])
def test_parser_and_grammar_accept(automaton: Automaton, text: str) -> None:
    answer, spans = TICKETS.parse(text)
    assert json.loads(json.dumps(answer)) == json.loads(text)
    assert TICKETS.serialise(answer) == TICKETS.serialise(json.loads(text)) == text
    assert TICKETS.read(json.loads(text)) == answer  # out of a file: lists are tuples
    assert accepts(automaton, text) and len(text.encode()) <= TICKETS.max_answer_bytes
    for name, (start, end) in spans.items():
        assert json.loads(text.encode()[start:end]) == json.loads(text)[name]


@pytest.mark.parametrize(("old", "new"), REJECTED.values(), ids=REJECTED)
def test_parser_and_grammar_reject(automaton: Automaton, old: str, new: str) -> None:
    assert old in GOLD
    text = GOLD.replace(old, new)
    with pytest.raises(InvalidAnswer):
        TICKETS.parse(text)
    assert not accepts(automaton, text)


@pytest.mark.parametrize("name", ["data/contract.toml", "tests/data/tickets/contract.toml"])
def test_whatever_the_grammar_lets_through_the_parser_reads(name: str) -> None:
    """Random walks over the automaton's bytes: overlong forms, surrogates, controls would turn up here."""
    contract, draw = Contract.load(ROOT / name), random.Random(5)
    automaton = Automaton(contract.grammar)
    bytes_of = {
        column: [b for b in range(256) if automaton.classes[b] == column] for column in automaton.classes
    }
    beyond = 0
    for _ in range(200):
        state, text = 0, b""
        while not automaton.final[state]:
            columns = [c for c, target in enumerate(automaton.table[state]) if target != DEAD]
            high = [c for c in columns if bytes_of[c][0] >= 0x80]
            column = draw.choice(high if high and draw.random() < 0.6 else columns)
            text += bytes([draw.choice(bytes_of[column])])
            state = int(automaton.table[state, column])
        contract.parse(text.decode())
        beyond += not text.isascii()
    assert (beyond > 150) == (name != "data/contract.toml")


def test_every_set_is_one_path_and_no_other_is() -> None:
    """The expression's size grows like n log n, its language is exactly the ordered subsets."""
    field = read_field({"name": "f", "type": "labels", "labels": dict.fromkeys("abcdefg", "")})
    automaton = Automaton(field.pattern.replace("(?:", "("))
    for size in range(8):
        for chosen in (
            itertools.product("abcdefg", repeat=size) if size < 4 else itertools.combinations("abcdefg", size)
        ):
            legal = len(chosen) > 0 and list(chosen) == sorted(set(chosen))
            assert field.legal(chosen) == legal
            assert accepts(automaton, json.dumps(chosen, separators=(",", ":"))) == legal
    many = read_field({"name": "f", "type": "labels", "labels": {f"label {i:03}": "" for i in range(150)}})
    assert isinstance(many, Labels) and len(many.pattern) < 20_000
    assert len(Automaton(many.pattern.replace("(?:", "(")).table) < 10_000


def test_a_number_that_begins_another_is_told_by_what_follows() -> None:
    raw = {"name": "n", "prompt": {"system": "{fields}"}}
    for labels, told in (
        ({"1": "", "10": ""}, True),
        ({"1": "", "2": ""}, False),
        ({"-1": "", "1": ""}, False),
    ):
        contract = Contract.from_dict({**raw, "fields": [{"name": "n", "type": "integer", "labels": labels}]})
        _, spans = contract.parse('{"n":1}')
        assert spans == {"n": (5, 7 if told else 6)}


def test_the_labels_of_a_set_are_found_in_bytes() -> None:
    fields = [
        {"name": "é", "type": "text", "max_chars": 5, "ascii": False},
        {"name": "s", "type": "labels", "optional": True, "labels": {"ä": "", "är": "", "b]": ""}},
    ]
    fields[0]["name"] = "e"
    contract = Contract.from_dict({"name": "n", "prompt": {"system": "{fields}"}, "fields": fields})
    text = '{"e":"éé","s":["ä","är","b]"]}'
    found = [text.encode()[start:end].decode() for start, end in contract.parts(text)["s"]]
    # the quote behind "ä" tells it from "är"; behind the others it tells nothing
    assert found == ['"ä"', ',"är', ',"b]']
    assert contract.parts('{"e":"éé","s":[]}') == {"s": []}


def test_what_the_prompt_says() -> None:
    assert "trades: who has to come (a list, in this order, of any of)\n" in TICKETS.system_prompt
    assert (
        "- []: none of these\n" in TICKETS.system_prompt
        and "- null: none of these\n" in TICKETS.system_prompt
    )
    assert '- 5: an emergency\nfloor: where it is (one of, or null)\n- "ground": ' in TICKETS.system_prompt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trades": ["glazier", "plumber"]}, "not a list of some of .* in this order"),
        ({"trades": "plumber"}, "not a list of some of"),
        ({"trades": None}, "not a list of some of"),
        ({"severity": 6}, r"severity is 6, not one of \[1, 2, 3, 4, 5\]"),
        ({"severity": True}, "severity is True"),
        ({"severity": "4"}, "severity is '4'"),
        ({"severity": None}, "severity is None"),
        ({"floor": "grund"}, "or null .did you mean 'ground'"),
        ({"floor": ""}, "floor is ''"),
    ],
)
def test_an_illegal_value_is_named(change: dict[str, Any], message: str) -> None:
    answer, _ = TICKETS.parse(GOLD)
    with pytest.raises(InvalidAnswer, match=message):
        TICKETS.serialise({**answer, **change})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "integer", "labels": {"1": "", "2.5": ""}}, "must be a whole number"),
        ({"type": "integer", "labels": {"1": "", "02": ""}}, "must be a whole number"),
        ({"type": "integer", "labels": {"1": ""}}, "at least two labels"),
        ({"type": "label", "optional": True, "labels": {"none of these": "", "a": ""}}, "stands for null"),
        (
            {"type": "labels", "optional": "yes", "labels": {"a": "", "b": ""}},
            "optional must be true or false",
        ),
        ({"type": "boolean", "optional": True}, "a boolean field has no optional"),
        ({"type": "labels", "labels": {"a": "", "b": ""}, "max_chars": 3}, "a labels field has no max_chars"),
        ({"type": ["label"], "labels": {"a": "", "b": ""}}, "type must be one of"),
        ({"type": "integer", "labels": {"1": "", "2": ""}, "escalates": [3]}, "escalates lists legal values"),
    ],
)
def test_a_wrong_field_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        read_field({"name": "f", **entry})


def test_rules_speak_of_a_sets_labels_and_of_null() -> None:
    def rules(*entries: dict[str, Any]) -> Contract:
        return Contract.from_dict(
            {**TICKETS.raw, "enforce_rules": True, "rules": [{"name": "r", **e} for e in entries]}
        )

    answer, _ = TICKETS.parse(GOLD)
    named = rules({"when": {"trades": "glazier"}, "mentions": ["window"], "then": {"trades": ["plumber"]}})
    assert named.violations(answer, "The window.") == [] and named.violations(answer, "A door.") == ["r"]
    corrected, applied = named.enforce(answer, ["r"])
    assert (corrected["trades"], applied) == (("plumber",), ("r",))
    whole = rules({"when": {"trades": ["plumber", "glazier"]}, "allow": {"floor": ["roof"]}})
    assert (
        whole.violations(answer, "") == ["r"]
        and whole.violations({**answer, "trades": ("plumber",)}, "") == []
    )
    null = rules({"when": {"floor": "none of these"}, "allow": {"trades": ["plumber"]}})
    assert null.violations(answer, "") == ["r"] and null.violations({**answer, "floor": "roof"}, "") == []
    assert null.violations({**answer, "trades": ()}, "") == []
    with pytest.raises(ContractError, match="would still break it"):
        rules({"when": {"trades": "glazier"}, "mentions": ["x"], "then": {"trades": ["plumber", "glazier"]}})


def test_escalation_of_numbers_and_sets() -> None:
    severity = TICKETS.fields[1]
    assert [severity.under_escalates(5, answered) for answered in (5, 4, 1)] == [False, True, True]
    trades = read_field(
        {"name": "t", "type": "labels", "labels": {"a": "", "b": "", "c": ""}, "escalates": ["b", "c"]}
    )
    assert trades.grave(("a", "b")) and not trades.grave(("a",))
    assert trades.under_escalates(("b", "c"), ("a", "b")) and not trades.under_escalates(("b",), ("a", "c"))


@pytest.mark.parametrize(
    ("least", "most", "length"), [(1, 20, 20), (1, 160, 80), (90, 160, 90), (9, 100_000, 80)]
)
def test_the_sample_of_a_text_is_legal(least: int, most: int, length: int) -> None:
    text = read_field({"name": "t", "type": "text", "min_chars": least, "max_chars": most})
    (sample,) = text.samples
    assert text.legal(sample) and len(sample) == length and sample.startswith("The request names th")


def test_each_type_has_its_name_and_its_column() -> None:
    assert {name: each.arrow for name, each in TYPES.items()} == {
        "label": "string", "boolean": "bool", "text": "string", "integer": "int64", "labels": "list<string>",
    }  # fmt: skip


@given(st.sets(st.integers(-300, 300), min_size=2, max_size=8))
def test_which_numbers_begin_others_is_found_once(numbers: set[int]) -> None:
    """A field's, not an answer's: with hundreds of codes each answer took longer than the model."""
    raw = {"name": "t", "prompt": {"system": "{fields}"}}
    field = {"name": "n", "type": "integer", "labels": {str(number): "" for number in numbers}}
    (made,) = Contract.from_dict({**raw, "fields": [field]}).fields
    texts = [str(number) for number in numbers]
    assert made.told_by_next == any(a != b and b.startswith(a) for a in texts for b in texts)
    assert "told_by_next" in vars(made)
