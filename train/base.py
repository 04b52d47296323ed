"""Makes the mini base: `python -m train.base --out data/mini-base` (or `make base`).

A Qwen3-architecture model of under 6 M parameters, trained from scratch on generated requests (`train/requests.py`), some
written ones and many small tasks (`train/tasks.py`), with token embeddings seeded from public word vectors
(`train/lexicon.py`) and kept as they are, and on what a public sentence encoder reads in texts with any words in them
(`train/teacher.py`). It stands in for a model of a hub: it reads requests, answers in compact JSON and knows generic
platforms; the company's policy is left to the adapter.
"""

import dataclasses
import itertools
import json
import os
import random
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import rich.progress
import torch
import transformers
from tokenizers import Tokenizer
from torch.nn import functional

from batch.contract import Contract
from batch.errors import BatchRouteError
from train import lexicon
from train.dataset import IGNORED, load_rows
from train.muon import Muon
from train.requests import Facts, Request, phrase_book, requests
from train.tasks import Task, build_tasks
from train.teacher import SIZES, Teacher, cross_entropy, one_hot, reworded, spliced

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TYPICAL_ANSWER = 32  # tokens behind the request, for sizing batches


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """Size and training of the mini base; `train/base.py` is the one place of these defaults."""

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
    reading_share: float = 0.5  # of the requests: without answers, the facts as the teacher reads them in reworded requests
    reading_weight: float = 0.4  # of their loss
    splice_share: float = 0.3  # of their requests: half of one and half of another
    written_share: float = 0.5  # of the requests, where written ones are given
    noise: float = 0.02  # standard deviation added to each component of a request token's unit embedding
    seed: int = 17


def build(out: Path, contract_path: Path, config: BaseConfig, written: Path | None = None, embedder: lexicon.Vectors | None = None) -> Path:
    """Train the base and put its folder at `out`, whole or not at all. Returns `out`.

    `written` are requests that people wrote, with their facts; only those are read, not the policy's answers. `embedder`
    gives the word vectors and becomes the teacher; the default is all-MiniLM-L6-v2 from its package.
    """
    torch.manual_seed(config.seed)
    contract = Contract.load(contract_path)
    by_hand = [_written(row.request, row.facts) for row in load_rows(written, contract) if row.facts] if written else []
    embedder = embedder or lexicon.Embedder()
    tasks = build_tasks(contract.system_prompt, random.Random(config.seed))
    tokenizer = make_tokenizer(embedder, contract, tasks, config)
    model = make_model(tokenizer, config)
    vectors = lexicon.token_vectors(tokenizer, embedder, config.hidden_size, model.config.vocab_size, config.seed)
    model.model.embed_tokens.weight.data.copy_(vectors)
    model.model.embed_tokens.weight.requires_grad_(False)
    words = embedder.words()
    teacher = Teacher(embedder, config.seed)  # from here on the embedder is the teacher's
    teacher.tune(mixed(by_hand, config.written_share, config.seed), config.teacher_steps)
    Pretraining(model, tokenizer, tasks, vectors, Reading(teacher, words, by_hand), config).run()
    save(out, model, tokenizer, config)
    return out


def _written(text: str, facts: Mapping[str, Any]) -> Request:
    return Request(text, Facts(**facts), "written", re.split(r"(?<=[.!?])\s", text)[0])


def mixed(by_hand: list[Request], share: float, seed: int) -> Iterator[Request]:
    """Generated requests without end, and, if there are any, `share` of written ones among them."""
    rng, stream = random.Random(seed + 1), requests(random.Random(seed + 1), "train")
    while True:
        yield rng.choice(by_hand) if by_hand and rng.random() < share else next(stream)


def make_tokenizer(embedder: lexicon.Vectors, contract: Contract, tasks: list[Task], config: BaseConfig) -> Tokenizer:
    """BPE over generated requests, the tasks' answers, the prompts and weighted English words."""
    stream = requests(random.Random(config.seed), "train")
    texts = []
    for number in range(6_000):
        request = next(stream)
        texts += [request.text, tasks[number % len(tasks)].target(request)]
    texts += [task.system for task in tasks] + [contract.regex] * 3
    texts += [json.dumps(answer, separators=(",", ":")) for answer in contract.sample_answers()] * 5
    book = phrase_book()
    ours = {word.lower() for text in texts[:4_000] for word in re.findall(r"[A-Za-z]{3,}", text)}
    ours |= {word for word in book["lexicon"]["words"].split() if word.isalpha()}  # type: ignore[attr-defined]
    return lexicon.train_tokenizer(texts, lexicon.word_counts(embedder, ours), config.vocab_size)


def make_model(tokenizer: Tokenizer, config: BaseConfig) -> Any:
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    settings = transformers.Qwen3Config(
        vocab_size=-(-tokenizer.get_vocab_size(with_added_tokens=True) // 64) * 64,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=64,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        eos_token_id=end,
        pad_token_id=pad,
        bos_token_id=None,
        dtype="float32",
    )
    return transformers.Qwen3ForCausalLM(settings)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of one task: the shared head, then `rows` [B, T] right-padded; `labels` are IGNORED outside the answers.

    A batch for reading only has no answers.
    """

    head: list[int]
    rows: torch.Tensor
    labels: torch.Tensor
    text: torch.Tensor  # True at the request's tokens
    start: torch.Tensor  # [B], where each answer starts to be predicted
    facts: torch.Tensor  # [B, sum(SIZES)], probabilities of each fact's values


class Reading(NamedTuple):
    """What is read beside the generated requests: a teacher, the words that stand in for others, written requests."""

    teacher: Teacher
    words: list[str]
    by_hand: list[Request]


class Pretraining:
    """The loop: batches of one task each, whose system prompt is run once and shared by the rows."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, tasks: list[Task], vectors: torch.Tensor, reading: Reading, config: BaseConfig
    ) -> None:
        self.model, self.tokenizer, self.tasks, self.reading, self.config = model, tokenizer, tasks, reading, config
        self.rng = random.Random(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.near = lexicon.neighbours(tokenizer, vectors)
        self.pad, self.end = model.config.pad_token_id, model.config.eos_token_id
        self.tail = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self.heads = [self._ids(f"<|im_start|>system\n{t.system}<|im_end|>\n<|im_start|>user\n") for t in tasks]
        self.weights = [task.weight for task in tasks]
        self.probe = torch.nn.Linear(config.hidden_size, sum(SIZES))
        self.optimizers = _optimizers(model, self.probe, config)

    def run(self) -> None:
        """Train for `steps` batches; the rates rise for 60 steps and fall to zero over the second half."""
        columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TextColumn("{task.fields[note]}"))
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
                    print(f"step {step} of {self.config.steps}  loss {loss_mean:.3f}  {minutes:.1f} min", flush=True)
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
        """Cross-entropy of the answers, plus that of the facts read by a linear probe where each answer starts.

        The answers' softmax is over the batch's own answer tokens and a random sample of the others, because the whole
        vocabulary would cost more than all layers together. The probe reads one layer below the last and is thrown
        away: it makes every prompt, whatever it asks, compute the facts where an adapter can pick them up.
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
        # Rows are padded on the right and attention is causal, so that no row sees its padding and no mask is needed.
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
                rows = sorted((row for row in rows if len(row[0]) <= self.config.max_request_tokens), key=lambda row: len(row[0]))
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
        return [(True, [self._reworded(request, self.rng.choice(pool)) for request in pool[:count]]), (False, pool[count:])]

    def _reworded(self, request: Request, other: Request) -> Request:
        text = spliced(request.text, other.text) if self.rng.random() < self.config.splice_share else request.text
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
            teacher.read([r.text for r in found]) if reads else torch.stack([one_hot(r.facts) for r in found]),
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


def _optimizers(model: Any, probe: torch.nn.Module, config: BaseConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the layers' matrices, which it trains in fewer steps, and AdamW for the norms; with their peak rates."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim == 2] if config.muon_rate else []
    others = [p for p in trained if p.ndim != 2 or not config.muon_rate] + list(probe.parameters())
    adamw = torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    if not matrices:
        return [(adamw, config.learning_rate)]
    muon = Muon(matrices, lr=config.muon_rate, weight_decay=0.05)
    return [(adamw, config.learning_rate), (muon, config.muon_rate)]


def save(out: Path, model: Any, tokenizer: Tokenizer, config: BaseConfig) -> None:
    """Write the folder beside `out` and rename it, so that nobody sees half a model."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, eos_token_id=[model.config.eos_token_id, model.config.pad_token_id], pad_token_id=model.config.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(part)
    (part / "model.safetensors").chmod(0o644)  # written for the owner only
    tokenizer.save(str(part / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_length,
    }
    (part / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (part / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(part, out)
    shutil.rmtree(old, ignore_errors=True)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the model; replaced if it exists.")
@click.option("--contract", type=click.Path(path_type=Path), default=Path("data/contract.toml"), show_default=True)
@click.option("--written", type=click.Path(path_type=Path), help="Labelled requests that people wrote, with their facts.")
@click.option("--steps", type=click.IntRange(min=1), default=BaseConfig.steps, show_default=True)
def main(out: Path, contract: Path, written: Path | None, steps: int) -> None:
    """Train the embedded default base model from scratch."""
    try:
        build(out, contract, dataclasses.replace(BaseConfig(), steps=steps), written)
    except BatchRouteError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
