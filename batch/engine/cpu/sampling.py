"""vLLM's choice of the next tokens on a CPU, with fewer passes over the logits.

Every request here is greedy and wants the log-probabilities of the chosen token and of a label's
alternatives. vLLM 0.32 gets there
through about ten passes over ``[tokens, vocabulary]``: to float32 and back for the grammar's mask, a
log-softmax, a copy, ranks, and with drafts several more. Here the mask is applied in the logits' own dtype
and each chunk of rows is done while it is in the cache. `tests/batch/engine/cpu/test_sampling.py` proves both
equal; a step with any other request, a canary's say, goes vLLM's way.
"""

from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID, RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker import gpu_model_runner

from batch.engine import alternatives
from batch.engine.patches import patch

CHUNK = 8  # rows; of a vocabulary of 14,464 they are 463 kB in float32
LEAST = 1e-34  # share of a token that is legal: others have exp(-80)
MOST_LEGAL = 1024  # tokens that a label can go on with; a text can with more, and there nobody asks which


def install() -> None:
    """Put these in vLLM's place, for this process; its CPU model runner takes them from this module."""
    for new in (apply_grammar_bitmask, GreedySampler, GreedyRejectionSampler):
        patch(gpu_model_runner, new.__name__.removeprefix("Greedy"), new, made_for="0.32")


def apply_grammar_bitmask(scheduled: Any, grammar: Any, batch: Any, logits: torch.Tensor) -> None:
    """Set the logits that a request's grammar forbids to -inf, in place.

    `logits` ``[tokens, vocabulary]`` has for each request of the batch one row a draft token and one more.
    The rows of the grammar's bitmask ``[tokens, vocabulary / 32]`` come in an order of their own and only for
    requests with a grammar.
    """
    drafted = scheduled.scheduled_spec_decode_tokens
    first, row = {}, 0
    for request in batch.req_ids:
        first[request] = row
        row += 1 + len(drafted.get(request, ()))
    # every token is allowed
    bitmask = np.full((len(logits), grammar.grammar_bitmask.shape[1]), -1, dtype=np.int32)
    source = 0
    for request in grammar.structured_output_request_ids:
        rows = 1 + len(drafted.get(request, ()))
        if request in first:
            bitmask[first[request] : first[request] + rows] = grammar.grammar_bitmask[source : source + rows]
        source += rows
    forbidden = np.unpackbits(bitmask.view(np.uint8), axis=1, bitorder="little") == 0
    width = min(logits.shape[1], forbidden.shape[1])
    logits[:, :width].masked_fill_(torch.from_numpy(forbidden[:, :width]), float("-inf"))


def choose(logits: torch.Tensor, others: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token of each row of ``[rows, vocabulary]`` and behind it the `others` likeliest, int64
    ``[rows, 1 + others]``, and their natural log-probabilities, float32. Others are told where few tokens are
    legal and the chosen one is not certain; elsewhere theirs is -inf.
    """
    if len(logits) == 1:  # a single sum would be shared out over threads, in another order of additions
        tokens, logprobs = choose(logits.repeat(2, 1), others)
        return tokens[:1], logprobs[:1]
    tokens = torch.zeros(len(logits), 1 + others, dtype=torch.int64)
    logprobs = torch.full((len(logits), 1 + others), float("-inf"))
    for start in range(0, len(logits) - 1, CHUNK):
        rows = slice(start, start + CHUNK if len(logits) - start > CHUNK + 1 else None)
        part = logits[rows].float()
        tokens[rows, 0] = Sampler.greedy_sample(part)
        part -= part.gather(1, tokens[rows, :1])
        shares = part.clamp_(min=-80.0).exp_()  # of each token, in multiples of the chosen one's
        sums = shares.sum(dim=1)
        logprobs[rows, 0] = -sums.log()
        for row in (sums > 1 + alternatives.LEAST).nonzero().flatten().tolist() if others else ():
            if torch.count_nonzero(shares[row] > LEAST) <= MOST_LEGAL:
                likeliest, tokens[start + row, 1:] = shares[row].topk(others)
                logprobs[start + row, 1:] = likeliest.log() - sums[row].log()
    return tokens, logprobs


def _plain(metadata: Any) -> bool:
    """Whether all requests are greedy, want no other log-probabilities, and change no logit."""
    return bool(
        metadata.all_greedy
        and metadata.max_num_logprobs in (0, alternatives.COUNT)
        and metadata.no_penalties
        and metadata.allowed_token_ids_mask is None
        and not metadata.bad_words_token_ids
        and not metadata.logprob_token_ids
    )


def _logprobs(tokens: torch.Tensor, logprobs: torch.Tensor) -> LogprobsTensors:
    """As vLLM has them; each first token is the most likely one, so its rank is 1."""
    return LogprobsTensors(tokens.to(torch.int32), logprobs, torch.ones(len(tokens), dtype=torch.int64))


class GreedySampler(Sampler):  # type: ignore[misc,valid-type]
    def forward(
        self, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any
    ) -> SamplerOutput:
        if args or kwargs or not _plain(sampling_metadata):
            return super().forward(logits, sampling_metadata, *args, **kwargs)
        for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
            logits = processor.apply(logits)
        tokens, logprobs = choose(logits, sampling_metadata.max_num_logprobs)
        return SamplerOutput(tokens[:, :1].to(torch.int32), _logprobs(tokens, logprobs))


class GreedyRejectionSampler(RejectionSampler):  # type: ignore[misc,valid-type]
    def forward(
        self, metadata: Any, draft_probs: torch.Tensor | None, logits: torch.Tensor, sampling_metadata: Any
    ) -> SamplerOutput:
        """Keep the drafts up to the first that is not the most likely token, and that token behind them."""
        if draft_probs is not None or self.synthetic_mode or not _plain(sampling_metadata):
            return super().forward(metadata, draft_probs, logits, sampling_metadata)
        listed, logprobs = choose(logits, sampling_metadata.max_num_logprobs)
        chosen = listed[:, 0]
        counts = torch.tensor(metadata.num_draft_tokens)
        width = int(counts.max()) + 1
        starts = (torch.cumsum(counts + 1, 0) - counts - 1)[:, None]
        place = torch.arange(width)[None]
        index = (starts + place).clamp_(max=len(chosen) - 1)
        drafts = torch.full((len(counts), width), PLACEHOLDER_TOKEN_ID)
        drafts[place < counts[:, None]] = metadata.draft_token_ids.long()
        tokens = chosen[index]
        agreed = (tokens == drafts).long().cumprod(dim=1).sum(dim=1, keepdim=True)
        tokens = tokens.masked_fill(place > agreed, PLACEHOLDER_TOKEN_ID)
        listed, logprobs = listed[index.flatten()], logprobs[index.flatten()]
        listed[:, 0] = tokens.flatten().clamp(min=0)
        return SamplerOutput(tokens.to(torch.int32), _logprobs(listed, logprobs))
