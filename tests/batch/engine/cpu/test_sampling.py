"""Our choice of tokens on a CPU against vLLM's own, on random logits: the same tokens, the same log-probabilities."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.platforms import current_platform
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.structured_output.utils import apply_grammar_bitmask

from batch.engine.alternatives import COUNT
from batch.engine.cpu import sampling

VOCABULARY = 1000


def metadata(**changes: Any) -> SamplingMetadata:
    nothing = torch.zeros(0)
    plain = SamplingMetadata(
        temperature=None,
        all_greedy=True,
        all_random=False,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=0,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=nothing,
        presence_penalties=nothing,
        repetition_penalties=nothing,
        output_token_ids=[],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=SimpleNamespace(non_argmax_invariant=[], argmax_invariant=[]),
    )
    return dataclasses.replace(plain, **changes)


def masked_logits(rows: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random ones, of which a few rows allow one token, some a handful, and some all."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, VOCABULARY, generator=generator) * 3
    for row in range(rows):
        legal = [1, 5, VOCABULARY][row % 3]
        forbidden = torch.randperm(VOCABULARY, generator=generator)[legal:]
        logits[row, forbidden] = float("-inf")
    return logits.to(dtype)


def waiting(logits: torch.Tensor) -> torch.Tensor:
    """The same without -inf, and with the mask that a grammar would have put there."""
    legal = np.zeros((len(logits), -(-logits.shape[1] // 32) * 32), dtype=np.uint8)
    legal[:, : logits.shape[1]] = ~logits.isinf().numpy()
    found = torch.where(logits.isinf(), 50.0, logits)  # likelier than all that is legal
    setattr(found, sampling.MASK, np.packbits(legal, axis=1, bitorder="little").view(np.int32))
    return found


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.sampled_token_ids.tolist() == theirs.sampled_token_ids.tolist()
    kept = (theirs.sampled_token_ids != -1).flatten()
    for name in ("logprob_token_ids", "selected_token_ranks"):
        assert (
            getattr(ours.logprobs_tensors, name)[kept].tolist()
            == getattr(theirs.logprobs_tensors, name)[kept].tolist()
        )
    torch.testing.assert_close(
        ours.logprobs_tensors.logprobs[kept], theirs.logprobs_tensors.logprobs[kept], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 37])
def test_chosen_tokens_are_vllms(rows: int, dtype: torch.dtype) -> None:
    logits = masked_logits(rows, dtype)
    if dtype == torch.bfloat16:  # equal logits share a rank, which we do not look for
        logits = torch.where(logits == logits.amax(dim=1, keepdim=True), logits + 1, logits)
    theirs = Sampler()(logits.clone(), metadata())
    assert_same(sampling.GreedySampler()(logits.clone(), metadata()), theirs)
    assert_same(sampling.GreedySampler()(waiting(logits), metadata()), theirs)


def alternatives(found: Any, row: int) -> dict[int, float]:
    """What is listed beside the chosen token, by token."""
    tensors = found.logprobs_tensors
    tokens, logprobs = tensors.logprob_token_ids[row].tolist(), tensors.logprobs[row].tolist()
    listed = zip(tokens[1:], logprobs[1:], strict=True)
    return {token: logprob for token, logprob in listed if token != tokens[0] and logprob > -80}


@pytest.mark.parametrize("rows", [1, 8, 37])
def test_a_labels_alternatives_are_vllms(rows: int) -> None:
    logits, asked = masked_logits(rows, torch.float32), metadata(max_num_logprobs=COUNT)
    ours, theirs = sampling.GreedySampler()(waiting(logits), asked), Sampler()(logits.clone(), asked)
    for row in range(rows):
        assert alternatives(ours, row) == pytest.approx(alternatives(theirs, row), abs=1e-4)
        assert len(alternatives(ours, row)) == [0, 4, COUNT - 1][row % 3]


def test_where_a_text_goes_on_nobody_asks_for_alternatives() -> None:
    logits = torch.randn(9, sampling.MOST_LEGAL + 1, generator=torch.Generator().manual_seed(5))
    logits[4, 3:] = float("-inf")
    logits = waiting(logits)
    _, logprobs = sampling.choose(logits, getattr(logits, sampling.MASK), COUNT)
    assert logprobs[:, 1:].isfinite().any(dim=1).tolist() == [row == 4 for row in range(9)]


@pytest.mark.parametrize("changes", [{"max_num_logprobs": 7}, {"max_num_logprobs": None}])
def test_other_requests_go_vllms_way(changes: dict[str, Any]) -> None:
    logits = masked_logits(6, torch.float32)
    ours = sampling.GreedySampler()(waiting(logits), metadata(**changes))
    theirs = Sampler()(logits.clone(), metadata(**changes))
    assert ours.sampled_token_ids.tolist() == theirs.sampled_token_ids.tolist()
    assert (ours.logprobs_tensors is None) == (theirs.logprobs_tensors is None)
    if theirs.logprobs_tensors is not None:
        assert ours.logprobs_tensors.logprobs.tolist() == theirs.logprobs_tensors.logprobs.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_drafts_are_vllms(dtype: torch.dtype) -> None:
    """Drafts that all agree, none, some, and rows without any."""
    current_platform.register_triton_kernel_overrides()  # as vLLM's CPU worker does
    counts = [3, 0, 8, 1, 2, 0]
    rows = sum(counts) + len(counts)
    logits = masked_logits(rows, dtype, seed=2)
    logits = torch.where(logits == logits.amax(dim=1, keepdim=True), logits + 1, logits)
    best, drafts, row = logits.argmax(dim=1).tolist(), [], 0
    for i, count in enumerate(counts):
        drafts.append(
            [best[row + j] if i != 2 or j < 4 else (best[row + j] + 1) % VOCABULARY for j in range(count)]
        )
        row += count + 1
    drafts[4] = [(token + 1) % VOCABULARY for token in drafts[4]]
    found = []
    for sampler, given in (
        (sampling.GreedyRejectionSampler(Sampler()), waiting(logits)),
        (RejectionSampler(Sampler()), logits.clone()),
    ):
        spec = SpecDecodeMetadata.make_dummy(drafts, torch.device("cpu"))
        ends = torch.tensor(np.cumsum([count + 1 for count in counts]) - 1)
        spec.bonus_logits_indices = ends
        spec.target_logits_indices = torch.tensor([i for i in range(rows) if i not in ends.tolist()])
        found.append(sampler(spec, None, given, metadata()))
    assert_same(*found)
    kept = [[token for token in own if token != -1] for own in found[0].sampled_token_ids.tolist()]
    assert [len(own) for own in kept] == [4, 1, 5, 2, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grammars_mask_is_vllms(dtype: torch.dtype) -> None:
    """Requests in another order than the batch's, one without a grammar, one with drafts, one that has left the batch."""
    random = np.random.default_rng(0)
    scheduled = SimpleNamespace(scheduled_spec_decode_tokens={"b": [1, 2]})
    batch = SimpleNamespace(req_ids=["a", "b", "c", "d"])
    bitmask = random.integers(-(2**31), 2**31, size=(6, -(-VOCABULARY // 32)), dtype=np.int64).astype(
        np.int32
    )
    grammar = SimpleNamespace(grammar_bitmask=bitmask, structured_output_request_ids=["gone", "d", "b", "a"])
    logits = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(3)).to(dtype)
    ours, theirs = logits.clone(), logits.clone()
    sampling.apply_grammar_bitmask(scheduled, grammar, batch, ours)
    ours = sampling.masked(ours, getattr(ours, sampling.MASK))
    apply_grammar_bitmask(scheduled, grammar, batch, theirs)
    assert torch.equal(ours, theirs) and ours.isinf().any() and not ours[4].isinf().any()


@pytest.mark.parametrize("rows", [1, 2, 7, 9, 20])
def test_a_rows_log_probability_does_not_depend_on_the_others(rows: int) -> None:
    """A vocabulary so large that torch shares out a lone row's sum over its threads."""
    logits = torch.randn(40, 150_001, generator=torch.Generator().manual_seed(4)) * 3
    tokens, logprobs = sampling.choose(logits.clone())
    for start in (0, 13):
        found = sampling.choose(logits[start : start + rows].clone())
        assert torch.equal(found[0], tokens[start : start + rows])
        assert torch.equal(found[1], logprobs[start : start + rows])


def test_nor_does_it_where_few_tokens_are_legal() -> None:
    """The others may have up to a thousand, with which a sum of all columns would add in another order."""
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(30, 5000, generator=generator) * 3
    for row in range(30):
        forbidden = torch.randperm(5000, generator=generator)[[1, 3, 60, 700, 4000][row % 5] :]
        logits[row, forbidden] = float("-inf")
    logits = waiting(logits)
    bitmask = getattr(logits, sampling.MASK)
    tokens, logprobs = sampling.choose(logits, bitmask, COUNT)
    for row in range(30):
        found = sampling.choose(logits[row : row + 1], bitmask[row : row + 1], COUNT)
        assert torch.equal(found[1], logprobs[row : row + 1]) and found[0][0, 0] == tokens[row, 0]
