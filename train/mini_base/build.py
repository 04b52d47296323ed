"""Makes the mini base: `python -m train.mini_base.build --out data/mini-base` (or `make base`).

A Qwen3-architecture model of under 6 M parameters, trained from scratch on generated requests
(`train/mini_base/requests.py`), some written ones and many small tasks (`train/mini_base/tasks.py`), with
token embeddings seeded from public word vectors (`train/mini_base/lexicon.py`) and kept as they are, and on
what a public sentence encoder reads in texts with any words in them (`train/mini_base/teacher.py`); the loop
is in `train/mini_base/pretraining.py`. It stands in for a model of a hub: it reads requests, answers in
compact JSON and knows generic platforms; the company's policy is left to the adapter.
"""

import dataclasses
import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from tokenizers import Tokenizer

from batch.contract.contract import Contract
from batch.contract.json_text import compact_json
from batch.errors import BatchRouteError
from train.dataset import load_rows
from train.files import write_json
from train.mini_base import lexicon
from train.mini_base.pretraining import BaseConfig, Pretraining, Reading, mixed
from train.mini_base.requests import Facts, Request, phrase_book, requests
from train.mini_base.tasks import Task, build_tasks
from train.mini_base.teacher import Teacher

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def build(
    out: Path,
    contract_path: Path,
    config: BaseConfig,
    written: Path | None = None,
    embedder: lexicon.Vectors | None = None,
) -> Path:
    """Train the base and put its folder at `out`, whole or not at all. Returns `out`.

    `written` are requests that people wrote, with their facts; only those are read, not the policy's answers.
    `embedder` gives the word vectors and becomes the teacher; the default is all-MiniLM-L6-v2 from its
    package.
    """
    torch.manual_seed(config.seed)
    contract = Contract.load(contract_path)
    by_hand = (
        [_written(row.request, row.facts) for row in load_rows(written, contract) if row.facts]
        if written
        else []
    )
    embedder = embedder or lexicon.Embedder()
    tasks = build_tasks(contract.system_prompt, random.Random(config.seed))
    tokenizer = make_tokenizer(embedder, contract, tasks, config)
    model = make_model(tokenizer, config)
    vectors = lexicon.token_vectors(
        tokenizer, embedder, config.hidden_size, model.config.vocab_size, config.seed
    )
    model.model.embed_tokens.weight.data.copy_(vectors)
    model.model.embed_tokens.weight.requires_grad_(False)
    teacher = Teacher(embedder, config.seed)  # from here on the embedder is the teacher's
    teacher.tune(mixed(by_hand, config.written_share, config.seed), config.teacher_steps)
    Pretraining(model, tokenizer, tasks, vectors, Reading(teacher, embedder.words(), by_hand), config).run()
    save(out, model, tokenizer, config)
    return out


def _written(text: str, facts: Mapping[str, Any]) -> Request:
    return Request(text, Facts(**facts), "written", re.split(r"(?<=[.!?])\s", text)[0])


def make_tokenizer(
    embedder: lexicon.Vectors, contract: Contract, tasks: list[Task], config: BaseConfig
) -> Tokenizer:
    """BPE over generated requests, the tasks' answers, the prompts and weighted English words."""
    stream = requests(random.Random(config.seed), "train")
    texts = []
    for number in range(6_000):
        request = next(stream)
        texts += [request.text, tasks[number % len(tasks)].target(request)]
    texts += [task.system for task in tasks] + [contract.regex] * 3
    texts += [compact_json(answer) for answer in contract.sample_answers()] * 5
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


def save(out: Path, model: Any, tokenizer: Tokenizer, config: BaseConfig) -> None:
    """Write the folder beside `out` and rename it, so that nobody sees half a model."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        eos_token_id=[model.config.eos_token_id, model.config.pad_token_id],
        pad_token_id=model.config.pad_token_id,
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
    write_json(part / "tokenizer_config.json", settings)
    (part / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(part, out)
    shutil.rmtree(old, ignore_errors=True)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the model; replaced if it exists.",
)
@click.option(
    "--contract", type=click.Path(path_type=Path), default=Path("data/contract.toml"), show_default=True
)
@click.option(
    "--written",
    type=click.Path(path_type=Path),
    help="Labelled requests that people wrote, with their facts.",
)
@click.option("--steps", type=click.IntRange(min=1), default=BaseConfig.steps, show_default=True)
def main(out: Path, contract: Path, written: Path | None, steps: int) -> None:
    """Train the embedded default base model from scratch."""
    try:
        build(out, contract, dataclasses.replace(BaseConfig(), steps=steps), written)
    except BatchRouteError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
