"""The training of the mini base: batches of one task each, the loss of their answers and of the facts that
are read.

Half of the batches have answers. The others have none: texts with other words in them, or spliced from two,
and what the teacher reads there (`train/mini_base/teacher.py`).
"""

import dataclasses
import itertools
import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import rich.progress
import torch
import transformers
from tokenizers import Tokenizer
from torch.nn import functional

from train.examples import IGNORED
from train.mini_base import lexicon
from train.mini_base.muon import Muon
from train.mini_base.requests import Request, requests
from train.mini_base.tasks import Task
from train.mini_base.teacher import SIZES, Teacher, cross_entropy, one_hot, reworded, spliced

TYPICAL_ANSWER = 32  # tokens behind the request, for sizing batches


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """Size and training of the mini base; this is the one place of these defaults."""

    vocab_size: int = 14_400  # byte-level BPE; control tokens come behind it
    hidden_size: int = 256  # a multiple of 64, bitsandbytes' NF4 block
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    ffn_size: int = 640
    max_length: int = 2048
    steps: int = 4_500
    teacher_steps: int = 600
    batch_tokens: int = 2_560  # of a batch's rows with their padding, without the shared head
    max_request_tokens: int = 160  # longer ones are left out: attention over them costs more than they teach
    learning_rate: float = 2.5e-3
    muon_rate: float = 0.02  # of the two-dimensional weights, by Muon; 0 trains them with AdamW too
    word_swap: float = 0.06  # share of request tokens replaced by a nearest neighbour in meaning
    word_drop: float = 0.02  # share of request tokens left out
    probe_weight: float = 0.2  # of the facts' loss beside the answers'
    reading_share: float = (
        0.5  # of the requests: without answers, the facts as the teacher reads them in reworded requests
    )
    reading_weight: float = 0.4  # of their loss
    splice_share: float = 0.3  # of their requests: half of one and half of another
    written_share: float = 0.5  # of the requests, where written ones are given
    noise: float = 0.02  # standard deviation added to each component of a request token's unit embedding
    seed: int = 17


def mixed(by_hand: list[Request], share: float, seed: int) -> Iterator[Request]:
    """Generated requests without end, and, if there are any, `share` of written ones among them."""
    rng, stream = random.Random(seed + 1), requests(random.Random(seed + 1), "train")
    while True:
        yield rng.choice(by_hand) if by_hand and rng.random() < share else next(stream)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of one task: the shared head, then `rows` [B, T] right-padded; `labels` are IGNORED outside the
    answers.

    A batch for reading only has no answers.
    """

    head: list[int]
    rows: torch.Tensor
    labels: torch.Tensor
    text: torch.Tensor  # True at the request's tokens
    start: torch.Tensor  # [B], where each answer starts to be predicted
    facts: torch.Tensor  # [B, sum(SIZES)], probabilities of each fact's values


class Reading(NamedTuple):
    """What is read beside the generated requests: a teacher, the words that stand in for others, written
    requests.
    """

    teacher: Teacher
    words: list[str]
    by_hand: list[Request]


class Pretraining:
    """The loop: batches of one task each, whose system prompt is run once and shared by the rows."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        tasks: list[Task],
        vectors: torch.Tensor,
        reading: Reading,
        config: BaseConfig,
    ) -> None:
        self.model, self.tokenizer, self.tasks, self.reading, self.config = (
            model,
            tokenizer,
            tasks,
            reading,
            config,
        )
        self.rng = random.Random(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.near = lexicon.neighbours(tokenizer, vectors)
        self.pad, self.end = model.config.pad_token_id, model.config.eos_token_id
        self.tail = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self.heads = [
            self._ids(f"<|im_start|>system\n{t.system}<|im_end|>\n<|im_start|>user\n") for t in tasks
        ]
        self.weights = [task.weight for task in tasks]
        self.probe = torch.nn.Linear(config.hidden_size, sum(SIZES))
        self.optimizers = _optimizers(model, self.probe, config)

    def run(self) -> None:
        """Train for `steps` batches; the rates rise for 60 steps and fall to zero over the second half."""
        columns = (
            *rich.progress.Progress.get_default_columns(),
            rich.progress.TextColumn("{task.fields[note]}"),
        )
        start, loss_mean = time.monotonic(), 0.0
        batches = self.batches()
        self.model.train()
        with rich.progress.Progress(*columns) as progress:
            bar = progress.add_task("training the base", total=1.0, note="")
            for step in range(self.config.steps):
                done = step / self.config.steps
                rate = min(1.0, (step + 1) / 60) * min(1.0, 2 * (1 - done))
                loss = self.step(next(batches), rate)
                loss_mean = loss if step == 0 else 0.98 * loss_mean + 0.02 * loss
                progress.update(bar, completed=done, note=f"step {step} loss {loss_mean:.3f}")
                if step % 100 == 0 and not progress.console.is_terminal:
                    minutes = (time.monotonic() - start) / 60
                    print(
                        f"step {step} of {self.config.steps}  loss {loss_mean:.3f}  {minutes:.1f} min",
                        flush=True,
                    )
        self.model.eval()

    def step(self, batch: Batch, rate: float) -> float:
        loss = self.loss(batch)
        loss.backward()
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the answers, plus that of the facts read by a linear probe where each answer
        starts.

        The answers' softmax is over the batch's own answer tokens and a random sample of the others, because
        the whole vocabulary would cost more than all layers together. The probe reads one layer below the
        last and is thrown away: it makes every prompt, whatever it asks, compute the facts where an adapter
        can pick them up.
        """
        model = self.model.model
        count = len(batch.rows)
        cache = transformers.DynamicCache()
        model(input_ids=torch.tensor([batch.head]), past_key_values=cache, use_cache=True)
        shared = transformers.DynamicCache()
        for index, layer in enumerate(cache.layers):
            shared.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), index)
        embedded = model.embed_tokens(batch.rows)
        jitter = torch.randn(embedded.shape, generator=self.generator) * self.config.noise
        embedded = embedded + jitter * batch.text[..., None]
        # Rows are padded on the right and attention is causal, so that no row sees its padding and no mask is
        # needed.
        out = model(inputs_embeds=embedded, past_key_values=shared, use_cache=True, output_hidden_states=True)
        states, below = out.last_hidden_state, out.hidden_states[-2][torch.arange(count), batch.start]
        facts = cross_entropy(self.probe(functional.rms_norm(below, below.shape[-1:])), batch.facts)
        if batch.labels.eq(IGNORED).all():
            return self.config.reading_weight * facts
        wanted = batch.labels[:, 1:] != IGNORED
        states, labels = states[:, :-1][wanted], batch.labels[:, 1:][wanted]
        others = torch.randint(self.model.config.vocab_size, (768,), generator=self.generator)
        classes, labels = torch.unique(torch.cat([labels, others]), return_inverse=True)
        logits = states @ self.model.lm_head.weight[classes].T
        return functional.cross_entropy(logits, labels[: len(states)]) + self.config.probe_weight * facts

    def batches(self) -> Iterator[Batch]:
        """Batches without end. Rows of similar length go together, so that little is padding."""
        stream = mixed(self.reading.by_hand, self.config.written_share, self.config.seed)
        while True:
            groups: list[tuple[list[tuple[list[int], Request]], bool]] = []
            for reads, pool in self._kinds(list(itertools.islice(stream, 512))):
                rows = [(self._noised(self._ids(request.text)), request) for request in pool]
                rows = sorted(
                    (row for row in rows if len(row[0]) <= self.config.max_request_tokens),
                    key=lambda row: len(row[0]),
                )
                group = []
                for row in rows:
                    group.append(row)
                    if len(group) * (len(row[0]) + TYPICAL_ANSWER) >= self.config.batch_tokens:
                        groups.append((group, reads))
                        group = []
            for group, reads in self.rng.sample(groups, len(groups)):
                yield self._batch(self.rng.choices(range(len(self.tasks)), self.weights)[0], group, reads)

    def _kinds(self, pool: list[Request]) -> list[tuple[bool, list[Request]]]:
        """The requests that are only read, reworded, and those that are answered."""
        count = round(self.config.reading_share * len(pool))
        return [
            (True, [self._reworded(request, self.rng.choice(pool)) for request in pool[:count]]),
            (False, pool[count:]),
        ]

    def _reworded(self, request: Request, other: Request) -> Request:
        text = (
            spliced(request.text, other.text)
            if self.rng.random() < self.config.splice_share
            else request.text
        )
        share = self.rng.choice([0.0, 0.1, 0.2, 0.4])
        return dataclasses.replace(request, text=reworded(text, self.reading.words, share, self.rng))

    def _batch(self, number: int, group: list[tuple[list[int], Request]], reads: bool) -> Batch:
        rows, labels, texts = [], [], []
        for text, request in group:
            answer = [] if reads else [*self._ids(self.tasks[number].target(request)), self.end]
            rows.append(torch.tensor([*text, *self.tail, *answer]))
            labels.append(torch.tensor([IGNORED] * (len(text) + len(self.tail)) + answer))
            texts.append(torch.tensor([True] * len(text) + [False] * (len(self.tail) + len(answer))))
        pad = torch.nn.utils.rnn.pad_sequence
        teacher, found = self.reading.teacher, [request for _, request in group]
        return Batch(
            self.heads[number],
            pad(rows, batch_first=True, padding_value=self.pad),
            pad(labels, batch_first=True, padding_value=IGNORED),
            pad(texts, batch_first=True, padding_value=False),
            torch.tensor([len(text) + len(self.tail) - 1 for text, _ in group]),
            teacher.read([r.text for r in found])
            if reads
            else torch.stack([one_hot(r.facts) for r in found]),
        )

    def _noised(self, ids: list[int]) -> list[int]:
        swap, drop, out = self.config.word_swap, self.config.word_drop, []
        for token in ids:
            chance = self.rng.random()
            if chance < drop and self.near[token, 0] != token:  # words that decide a fact have no neighbours
                continue
            out.append(int(self.rng.choice(self.near[token].tolist())) if chance > 1 - swap else token)
        return out

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def _optimizers(
    model: Any, probe: torch.nn.Module, config: BaseConfig
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the layers' matrices, which it trains in fewer steps, and AdamW for the norms; with their peak
    rates.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim == 2] if config.muon_rate else []
    others = [p for p in trained if p.ndim != 2 or not config.muon_rate] + list(probe.parameters())
    adamw = torch.optim.AdamW(
        others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    if not matrices:
        return [(adamw, config.learning_rate)]
    muon = Muon(matrices, lr=config.muon_rate, weight_decay=0.05)
    return [(adamw, config.learning_rate), (muon, config.muon_rate)]
