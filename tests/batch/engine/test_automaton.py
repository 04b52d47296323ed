"""The automaton reads what `re` reads, over bytes; a match can still come of every state."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.contract.contract import Contract
from batch.contract.labels_first import LabelsFirst
from batch.engine.automaton import DEAD, Automaton, utf8_ranges
from batch.errors import ContractError
from tests.conftest import ROOT

EXPRESSIONS = [
    r"Z",
    r"a(b|cd|)e?",
    r"(x|y){2,4}z*",
    r"[^a-c\n]+",
    r"[é-ö一-龥]{0,3}|\{\}",
    r'"[^"\\\x00-\x1f\x7f-\x9f\ud800-\udfff]{2,5}"',
    r"(a|ab|abc)(c|)(true|tr)",
]
LETTERS = 'abcdexyztrue"\\\n{}é一龥\U0010ffff\x7f'


def accepts(automaton: Automaton, text: str) -> bool:
    state = automaton.walk(0, text.encode())
    return state != DEAD and bool(automaton.final[state])


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_it_accepts_what_re_accepts(expression: str) -> None:
    automaton = Automaton(expression)

    @given(st.one_of(st.text(LETTERS, max_size=6), st.from_regex(re.compile(expression), fullmatch=True)))
    @settings(max_examples=60, database=None, deadline=None)
    def check(text: str) -> None:
        assert accepts(automaton, text) == bool(re.fullmatch(expression, text))

    check()


@pytest.mark.parametrize("name", ["data/contract.toml", "tests/data/triage/contract.toml"])
def test_a_contracts_answers(name: str) -> None:
    contract = Contract.load(ROOT / name)
    automaton = Automaton(contract.grammar)
    for answer in contract.sample_answers():
        text = contract.serialise(answer)
        assert accepts(automaton, text)
        assert not accepts(automaton, text[:-1]) and not accepts(automaton, text + "}")
        assert not accepts(automaton, text.replace(":", ": ", 1))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_from_each_state_a_match_can_be_reached(expression: str) -> None:
    automaton = Automaton(expression)
    able = set(automaton.final.nonzero()[0].tolist())
    for _ in automaton.table:
        able |= {i for i, row in enumerate(automaton.table) if able & set(row.tolist())}
    assert able == set(range(len(automaton.table)))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0x10FFFF), (0x7F, 0x80), (0x7FF, 0x800), (0xD000, 0xE001), (0xFFFE, 0x10001), (0x3A9, 0x12345), (65, 65)]
)  # fmt: skip
def test_utf8_ranges_hold_each_code_point_once(low: int, high: int) -> None:
    sequences = list(utf8_ranges(low, high))
    around = {
        *range(max(0, low - 70), low + 70), *range(high - 70, high + 70), *range(0, 0x110000, 997),
        0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000,
    }  # fmt: skip
    for point in around:
        if 0xD800 <= point <= 0xDFFF or not 0 <= point <= 0x10FFFF:
            continue
        text = chr(point).encode()
        found = [
            sequence
            for sequence in sequences
            if len(sequence) == len(text)
            and all(a <= byte <= b for byte, (a, b) in zip(text, sequence, strict=True))
        ]
        assert len(found) == (low <= point <= high), hex(point)


@pytest.mark.parametrize("expression", [r"(?=a)b", r"^a$", r"(a)\1", r"\d+", r".", r"[\w]"])
def test_what_is_not_known_is_refused(expression: str) -> None:
    with pytest.raises(ContractError, match="guided decoding does not support"):
        Automaton(expression)


@pytest.mark.parametrize("labels", [4, 24])
def test_labels_of_a_set_end_in_states_that_are_found_once(
    labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of n labels has 2^n values: what leads to the same states is followed once."""
    tags = {
        "name": "tags",
        "type": "labels",
        "optional": True,
        "labels": {f"tag {n}": "" for n in range(labels)},
    }
    fields = [tags, {"name": "reason", "type": "text", "max_chars": 40}]
    contract = Contract.from_dict({"name": "t", "prompt": {"system": "{fields}"}, "fields": fields})
    whole, beginning, asked = Automaton(contract.grammar), Automaton(LabelsFirst(contract).expression), 0

    def row(self: Automaton, state: int) -> list[int]:
        nonlocal asked
        asked += 1
        assert asked < 8 * len(whole.table)
        return self.table[state][self.classes].tolist()  # type: ignore[no-any-return]

    monkeypatch.setattr(Automaton, "_row", row)
    behind = whole.behind(beginning)
    inside = whole.walk(0, b'{"tags":["tag 1"')
    text = whole.walk(inside, b'],"reason":"')
    assert inside not in behind and text in behind
