"""Drafts: the machine follows every legal answer, drafts only what is forced, and changes the speed but no answer."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from batch.adapters import spec_of
from batch.contract import Contract
from batch.engine import Completion, EngineSpec
from batch.engine.drafts import LOST, AnswerDrafter, AnswerPath, answer_path
from batch.engine.process import EngineProcess
from batch.tokens import Renderer
from tests.conftest import ROOT, make_bundle

REQUESTS = [f"Please {verb} a dashboard of sales for region {i}." for i, verb in enumerate(["build", "find", "fix", "sell"] * 2)]


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
    longest = sum(len(field.values) * field.max_bytes * 8 for field in contract.scored_fields) + contract.max_answer_bytes
    assert len(answer_path(contract, renderer).edges) < longest


def drafts(path: AnswerPath, renderer: Renderer, given: Sequence[int], tokens: int = 32) -> list[int]:
    drafter = AnswerDrafter(SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=tokens)))
    drafter.paths = [path]
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
    drafter = AnswerDrafter(SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=4)))
    drafter.paths = [path]
    row = np.array([*renderer.suffix_ids, *ids])
    inside = next(i for i in range(len(ids)) if drafts(path, renderer, ids[:i]) == [] and i > len(ids) // 2) + 4
    for length in range(1, len(ids)):
        drafter.propose([[1]], np.array([len(renderer.suffix_ids) + length]), row[None, :])
    again = drafter.propose([[1]], np.array([len(renderer.suffix_ids) + inside]), row[None, :])[0]
    assert again == ids[inside : inside + 4]


def test_a_row_that_reads_its_prompt_gets_none(renderer: Renderer) -> None:
    drafter = AnswerDrafter(SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=4)))
    assert drafter.propose([[]], np.array([2]), np.array([[1, 2]])) == [[]]


def test_drafts_change_no_answer(contract: Contract, tmp_path: Path) -> None:
    """Real vLLM with and without, on the shipped base, which cuts answers as the renderer does: the same tokens, the same
    log-probabilities to float tolerance. `test_loop` counts the steps that a trained adapter saves."""
    base = ROOT / "data/mini-base"
    bundle = make_bundle(base, contract, tmp_path, scale=0.01)
    found = []
    for tokens in (0, 6):
        longest = bundle.renderer.max_model_len
        spec = EngineSpec("vllm", str(base), str(base), longest, 4, max_num_seqs=8, dtype="float32", draft_tokens=tokens)
        with EngineProcess(spec) as engine:
            engine.load(spec_of(bundle))
            engine.submit(bundle.digest, list(enumerate(bundle.renderer.encode_requests(REQUESTS))))
            done: dict[int, Completion] = {}
            while len(done) < len(REQUESTS):
                done.update({completion.key: completion for completion in engine.poll(60)})
            found.append(done)
    plain, drafted = found
    for key, completion in plain.items():
        assert completion.token_ids == drafted[key].token_ids and drafted[key].finish == "stop"
        assert drafted[key].logprobs == pytest.approx(completion.logprobs, abs=1e-3)
