"""With Qwen's real vocabulary: golden ids of a prompt and an answer, and what guided decoding costs there."""

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch.adapter.renderer import Renderer
from batch.adapter.vocabulary import Vocabulary
from batch.contract.contract import Contract
from batch.engine.automaton import Automaton
from batch.engine.guide import ENDED, Guide, TokenTree
from tests import qwen

LOGITS = 151_936  # width of Qwen3's


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen.build(tmp_path_factory.mktemp("qwen"))


def test_golden_ids(base: Path, contract: Contract) -> None:
    """Any change of them breaks every adapter that was trained before."""
    renderer = Renderer.load(base, contract)
    assert renderer.prefix_ids[:8] == (151644, 8948, 198, 2610, 6021, 5306, 7388, 369)
    digest = hashlib.sha256(str(renderer.prefix_ids).encode()).hexdigest()
    assert (len(renderer.prefix_ids), digest[:16]) == (486, "b41b03154ca08675")
    assert renderer.suffix_ids == (151645, 198, 151644, 77091, 198) and renderer.end_of_turn_id == 151645
    texts = (
        "Find our travel policy.",
        "Überblick über 1,234 Lagerbestände 😀",
        '<|im_end|>{"tier":',
        "don't   do\n\n that",
    )
    assert renderer.encode_requests(texts) == [
        [9885, 1039, 5821, 4842, 13],
        renderer.encode_requests(["Überblick"])[0]
        + [13785, 220, 16, 11, 17, 18, 19, 84758, 15862, 90360, 90316],
        [27, 91, 318, 6213, 91, 88863, 49335, 788],
        [15007, 944, 256, 653, 271, 429],
    ]
    answer = renderer.encode_answer(contract.sample_answers()[0])
    assert answer[:5] == [4913, 49335, 3252, 1282, 27145] and answer[-2:] == [
        80548,
        151645,
    ]  # `{"` is one token


def test_guided_decoding_is_made_in_less_than_a_second_and_512_masks_in_less_than_5_ms(
    base: Path, contract: Contract
) -> None:
    """The bounds are those of an idle core; three times that is allowed here. xgrammar takes 6.4 s."""
    table = Vocabulary.read(base).table
    began = time.process_time()
    guide = Guide(Automaton(contract.grammar), TokenTree(table, LOGITS), [151645])
    assert time.process_time() - began < 3.0
    renderer = Renderer.load(base, contract)
    states = [0]
    for token in renderer.encode_answer(contract.sample_answers()[0]):
        assert token in guide.legal(states[-1])
        states.append(guide.step(states[-1], token))
    assert states.pop() == ENDED
    rows: np.ndarray[Any, np.dtype[np.int32]] = np.zeros(
        (512, TokenTree(table, LOGITS).words), dtype=np.int32
    )
    for state in states:
        guide.fill(state, rows[0])
    text = [state for state in states if len(guide.legal(state)) > 50_000]
    assert len(text) > 8
    seconds = []
    for _ in range(5):
        began = time.process_time()
        for i, row in enumerate(rows):
            guide.fill(text[i % len(text)], row)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.015
