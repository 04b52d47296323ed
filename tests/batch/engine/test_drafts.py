"""Drafts: the machine follows every legal answer and drafts only what is forced; `test_loop` shows that no answer changes."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.engine.drafts import LOST, AnswerDrafter, AnswerPath, answer_path
from tests.conftest import ROOT


@pytest.fixture(scope="module", params=["data/contract.toml", "tests/data/triage/contract.toml"])
def renderer(request: pytest.FixtureRequest, tiny_base: Path) -> Renderer:
    return Renderer.load(tiny_base, Contract.load(ROOT / request.param))


def answers(renderer: Renderer) -> list[list[int]]:
    return [renderer.encode_answer(answer) for answer in renderer.contract.sample_answers()]


def test_every_sample_answer_is_a_path(renderer: Renderer) -> None:
    path = answer_path(renderer.contract, renderer)
    for ids in answers(renderer):
        state = 0
        for token in ids[:-1]:
            state = path.step(state, token)
            assert state != LOST
        assert path.forced(state) == renderer.end_of_turn_id == ids[-1]


def test_size_is_the_sum_of_the_labels_not_their_product(renderer: Renderer) -> None:
    contract = renderer.contract
    longest = (
        sum(len(field.values) * field.max_bytes * 8 for field in contract.scored_fields)
        + contract.max_answer_bytes
    )
    assert len(answer_path(contract, renderer).edges) < longest


def drafter_of(path: AnswerPath, tokens: int) -> AnswerDrafter:
    class Drafter(AnswerDrafter):
        paths: ClassVar = [path]

    return Drafter(SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=tokens)))


def drafts(path: AnswerPath, renderer: Renderer, given: Sequence[int], tokens: int = 32) -> list[int]:
    drafter = drafter_of(path, tokens)
    ids = np.array([*renderer.prefix_ids, *renderer.suffix_ids, *given])
    return drafter.propose([[1]], np.array([len(ids)]), ids[None, :])[0]


def test_only_what_is_forced_is_drafted(renderer: Renderer) -> None:
    """A draft is right for every sample answer that goes on as the tokens so far do."""
    path, samples = answer_path(renderer.contract, renderer), answers(renderer)
    drafted = 0
    for ids in samples:
        for length in range(1, len(ids)):
            draft = drafts(path, renderer, ids[:length])
            drafted += len(draft)
            for other in samples:
                if other[:length] == ids[:length]:
                    assert other[length : length + len(draft)] == draft
    assert drafted > sum(map(len, samples))  # a forced token is drafted from each place before it


def test_texts_of_earlier_rows_are_recalled(tiny_base: Path, contract: Contract) -> None:
    renderer = Renderer.load(tiny_base, contract)
    path, ids = answer_path(contract, renderer), answers(Renderer.load(tiny_base, contract))[0]
    drafter = drafter_of(path, 4)
    row = np.array([*renderer.suffix_ids, *ids])
    inside = (
        next(i for i in range(len(ids)) if drafts(path, renderer, ids[:i]) == [] and i > len(ids) // 2) + 4
    )
    for length in range(1, len(ids)):
        drafter.propose([[1]], np.array([len(renderer.suffix_ids) + length]), row[None, :])
    again = drafter.propose([[1]], np.array([len(renderer.suffix_ids) + inside]), row[None, :])[0]
    assert again == ids[inside : inside + 4]


def test_a_row_that_reads_its_prompt_gets_none(renderer: Renderer) -> None:
    drafter = AnswerDrafter(SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=4)))
    assert drafter.propose([[]], np.array([2]), np.array([[1, 2]])) == [[]]


def test_labels_beside_labels_are_not_all_encoded_in_pairs(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two fields of 60 labels a start would encode 3,600 answers; what a next value begins with is enough."""
    fields = [
        {"name": name, "type": "label", "labels": {f"{name} {n:02d}": "" for n in range(60)}} for name in "ab"
    ]
    contract = Contract.from_dict({"name": "t", "prompt": {"system": "{fields}"}, "fields": fields})
    renderer, encoded = Renderer.load(tiny_base, contract), 0
    encode = Renderer.encode_answer

    def counted(self: Renderer, answer: dict[str, str]) -> list[int]:
        nonlocal encoded
        encoded += 1
        return encode(self, answer)

    with monkeypatch.context() as patch:
        patch.setattr(Renderer, "encode_answer", counted)
        path = answer_path(contract, renderer)
    assert encoded < 1000
    for a in range(0, 60, 7):
        for b in range(60):
            state = 0
            for token in renderer.encode_answer({"a": f"a {a:02d}", "b": f"b {b:02d}"})[:-1]:
                state = path.step(state, token)
            assert path.forced(state) == renderer.end_of_turn_id
