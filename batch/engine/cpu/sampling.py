"""vLLM's choice of the next tokens on a CPU, with fewer passes over the logits.

Every request here is greedy and wants the log-probabilities of the chosen token and of a label's
alternatives. vLLM 0.32 gets there through about ten passes over ``[tokens, vocabulary]``: to float32 and back
for the grammar's mask, a log-softmax, a copy, ranks, and with drafts several more. Here the grammar's mask
waits for the choice. Where it leaves few tokens, as in and around a label, only their logits are computed
(`logits.py`) and looked at; a chunk of other rows is done while it is in the cache.
`tests/batch/engine/cpu/test_sampling.py` proves both equal; a step with any other request, a canary's say,
goes vLLM's way.
"""

from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID, RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker import gpu_model_runner

from batch.engine import alternatives
from batch.engine.cpu.logits import Logits
from batch.engine.patches import patch

CHUNK = 8  # rows; of a vocabulary of 14,464 they are 463 kB in float32
MOST_LEGAL = 1024  # tokens that a label can go on with; a text can with more, and there nobody asks which
MASK = "grammar_mask"  # attribute of logits: the mask that they wait for


def install() -> None:
    """Put these in vLLM's place, for this process; its CPU model runner takes them from this module."""
    for new in (apply_grammar_bitmask, GreedySampler, GreedyRejectionSampler):
        patch(gpu_model_runner, new.__name__.removeprefix("Greedy"), new, made_for="0.32")


def apply_grammar_bitmask(scheduled: Any, grammar: Any, batch: Any, logits: torch.Tensor | Logits) -> None:
    """Give `logits` the mask of what each request's grammar allows, for the sampler that follows.

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
    setattr(logits, MASK, bitmask)


def masked(logits: torch.Tensor | Logits, bitmask: np.ndarray | None) -> torch.Tensor:
    """All the `logits` ``[rows, vocabulary]``, in which those that `bitmask` forbids are now -inf."""
    logits = logits[:]
    if bitmask is not None:
        forbidden = np.unpackbits(bitmask.view(np.uint8), axis=1, bitorder="little") == 0
        width = min(logits.shape[1], forbidden.shape[1])
        logits[:, :width].masked_fill_(torch.from_numpy(forbidden[:, :width]), float("-inf"))
    return logits


def choose(
    logits: torch.Tensor | Logits, bitmask: np.ndarray | None = None, others: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely legal token of each row of ``[rows, vocabulary]`` and behind it the `others` likeliest,
    int64 ``[rows, 1 + others]``, and their natural log-probabilities, float32. `bitmask` ``[rows, vocabulary
    / 32]`` says what is legal; None is all. Others are told where few tokens are legal and the chosen one is
    not certain; elsewhere theirs is -inf.
    """
    tokens = torch.zeros(len(logits), 1 + others, dtype=torch.int64)
    logprobs = torch.full((len(logits), 1 + others), float("-inf"))
    many = np.arange(len(logits))
    if bitmask is not None:
        legal = np.bitwise_count(bitmask.view(np.uint32)).sum(axis=1, dtype=np.int64)
        few, many = np.flatnonzero(legal <= MOST_LEGAL), np.flatnonzero(legal > MOST_LEGAL)
        if len(few):
            tokens[few], logprobs[few] = _among_few(logits, bitmask, few, others)
    left = logits[many] if len(many) else logits  # some of vLLM's products of no rows end the process
    for start in range(0, len(many), CHUNK):
        rows = many[start : start + CHUNK]
        likely = masked(left[start : start + CHUNK], None if bitmask is None else bitmask[rows])
        tokens[rows, 0], logprobs[rows, 0] = _among_many(likely.float())
    return tokens, logprobs


def _among_many(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token of each row of ``[rows, vocabulary]`` float32, which is overwritten, and its
    log-probability.
    """
    if len(logits) == 1:  # a single sum would be shared out over threads, in another order of additions
        tokens, logprobs = _among_many(logits.repeat(2, 1))
        return tokens[:1], logprobs[:1]
    tokens = Sampler.greedy_sample(logits)
    logits -= logits.gather(1, tokens[:, None])
    return tokens, -logits.clamp_(min=-80.0).exp_().sum(dim=1).log()


def _among_few(
    logits: torch.Tensor | Logits, bitmask: np.ndarray, rows: np.ndarray, others: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `choose`, for `rows` of `logits` and `bitmask` that have few legal tokens."""
    at, word = np.nonzero(bitmask[rows])
    bits = np.unpackbits(bitmask[rows[at], word, None].view(np.uint8), axis=1, bitorder="little")
    pair, bit = np.nonzero(bits)
    row, token = at[pair], 32 * word[pair] + bit
    row, token = row[token < logits.shape[1]], token[token < logits.shape[1]]
    each = logits.of(rows[row], token) if isinstance(logits, Logits) else logits[rows[row], token].float()
    # each row's legal tokens from the left on
    counts = np.bincount(row, minlength=len(rows))
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    legal = torch.zeros(len(rows), 1 + max(others, int(column.max(initial=0))), dtype=torch.int64)
    values = torch.full(legal.shape, float("-inf"))
    legal[row, column] = torch.from_numpy(token)
    values[row, column] = each
    best = values.argmax(dim=1, keepdim=True)
    shares = (values - values.gather(1, best)).exp()
    # From left to right: in another order the sum would depend on how wide the other rows are.
    sums = shares.cumsum(dim=1)[:, -1:]
    logprobs = shares.log() - sums.log()
    tokens, found = legal.gather(1, best), logprobs.gather(1, best)
    if not others:
        return tokens, found
    likeliest, places = logprobs.topk(others)
    likeliest[(sums <= 1 + alternatives.LEAST).expand_as(likeliest)] = float("-inf")
    return torch.cat([tokens, legal.gather(1, places)], 1), torch.cat([found, likeliest], 1)


def _plain(metadata: Any) -> bool:
    """Whether all requests are greedy, want no other log-probabilities, and change no logit. (None that this
    engine makes has a bias or a least length.)
    """
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
        self, logits: torch.Tensor | Logits, sampling_metadata: Any, *args: Any, **kwargs: Any
    ) -> SamplerOutput:
        bitmask = getattr(logits, MASK, None)
        if args or kwargs or not _plain(sampling_metadata):
            return super().forward(masked(logits, bitmask), sampling_metadata, *args, **kwargs)
        tokens, logprobs = choose(logits, bitmask, sampling_metadata.max_num_logprobs)
        return SamplerOutput(tokens[:, :1].to(torch.int32), _logprobs(tokens, logprobs))


class GreedyRejectionSampler(RejectionSampler):  # type: ignore[misc,valid-type]
    def forward(
        self,
        metadata: Any,
        draft_probs: torch.Tensor | None,
        logits: torch.Tensor | Logits,
        sampling_metadata: Any,
    ) -> SamplerOutput:
        """Keep the drafts up to the first that is not the most likely token, and that token behind them."""
        bitmask = getattr(logits, MASK, None)
        if draft_probs is not None or self.synthetic_mode or not _plain(sampling_metadata):
            return super().forward(metadata, draft_probs, masked(logits, bitmask), sampling_metadata)
        listed, logprobs = choose(logits, bitmask, sampling_metadata.max_num_logprobs)
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
