"""vLLM's choice of the next tokens on a CPU, with fewer passes over the logits.

Every request here is greedy and wants the log-probability of the chosen token only. vLLM 0.32 gets there
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

from batch.engine.patches import patch

CHUNK = 8  # rows; of a vocabulary of 14,464 they are 463 kB in float32


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


def choose(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token of each row of ``[rows, vocabulary]``, int64, and its natural log-probability,
    float32.
    """
    if len(logits) == 1:  # a single sum would be shared out over threads, in another order of additions
        tokens, logprobs = choose(logits.repeat(2, 1))
        return tokens[:1], logprobs[:1]
    tokens = torch.empty(len(logits), dtype=torch.int64)
    logprobs = torch.empty(len(logits), dtype=torch.float32)
    for start in range(0, len(logits) - 1, CHUNK):
        rows = slice(start, start + CHUNK if len(logits) - start > CHUNK + 1 else None)
        part = logits[rows].float()
        tokens[rows] = Sampler.greedy_sample(part)
        part -= part.gather(1, tokens[rows, None])
        part.clamp_(min=-80.0)
        logprobs[rows] = -part.exp_().sum(dim=1).log_()
    return tokens, logprobs


def _plain(metadata: Any) -> bool:
    """Whether all requests are greedy, want the chosen token's log-probability only, and change no logit."""
    return bool(
        metadata.all_greedy
        and metadata.max_num_logprobs == 0
        and metadata.no_penalties
        and metadata.allowed_token_ids_mask is None
        and not metadata.bad_words_token_ids
        and not metadata.logprob_token_ids
    )


def _logprobs(tokens: torch.Tensor, logprobs: torch.Tensor) -> LogprobsTensors:
    """As vLLM has them; each token is the most likely one, so its rank is 1."""
    return LogprobsTensors(tokens.to(torch.int32)[:, None], logprobs[:, None], torch.ones_like(tokens))


class GreedySampler(Sampler):  # type: ignore[misc,valid-type]
    def forward(
        self, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any
    ) -> SamplerOutput:
        if args or kwargs or not _plain(sampling_metadata):
            return super().forward(logits, sampling_metadata, *args, **kwargs)
        for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
            logits = processor.apply(logits)
        tokens, logprobs = choose(logits)
        return SamplerOutput(tokens.to(torch.int32)[:, None], _logprobs(tokens, logprobs))


class GreedyRejectionSampler(RejectionSampler):  # type: ignore[misc,valid-type]
    def forward(
        self, metadata: Any, draft_probs: torch.Tensor | None, logits: torch.Tensor, sampling_metadata: Any
    ) -> SamplerOutput:
        """Keep the drafts up to the first that is not the most likely token, and that token behind them."""
        if draft_probs is not None or self.synthetic_mode or not _plain(sampling_metadata):
            return super().forward(metadata, draft_probs, logits, sampling_metadata)
        chosen, logprobs = choose(logits)
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
        flat = tokens.flatten()
        return SamplerOutput(tokens.to(torch.int32), _logprobs(flat.clamp(min=0), logprobs[index.flatten()]))
