"""Tiny random base models of the families that people bring, each with a tokenizer and a chat template of its kind.

The templates are written for these tests; each has the features of its family's own (where the instructions go, what
ends a turn, what the special tokens do to spaces), which is what a renderer can get wrong.
"""

import dataclasses
import functools
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[1]
# As `make families` has it; `make test` takes a few of each kind.
ALL = os.environ.get("BATCH_ROUTE_FAMILIES") == "all"
VOCABULARY = 1200
SPACE = "\u2581"
QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
}

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN2 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"
    + CHATML
)
QWEN3 = """{%- if tools %}{{- '# Tools' + (tools | tojson(indent=2)) }}{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if enable_thinking is defined and enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
        {% generation %}{{- content.lstrip('\\n') + '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{%- if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}{% else %}{% set content = m['content'] %}{% endif %}
{%- if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user and assistant') }}{% endif %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"""
GEMMA2 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{{- '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set first = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}{%- set first = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for m in rest -%}
    {%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
    {{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') -}}
    {%- if m['content'] is string -%}{{- m['content'] | trim -}}
    {%- else -%}{%- for item in m['content'] -%}{%- if item['type'] == 'text' -%}{{- item['text'] | trim -}}{%- endif -%}{%- endfor -%}{%- endif -%}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""
PARTS_ONLY = """{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\\n' }}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
PHI3 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<|system|>\\n' + m['content'] + '<|end|>\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + '<|end|>\\n' }}"
    "{% else %}{{ '<|assistant|>\\n' + m['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"


def corpus() -> list[str]:
    files = (ROOT / "data/contract.toml", *sorted((ROOT / "data/v1").glob("*.jsonl")))
    return [path.read_text(encoding="utf-8") for path in files]


def byte_level(controls: list[str], prefix_space: bool = False) -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = VOCABULARY - len(controls)
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in controls])
    return tokenizer


def sentencepiece(controls: list[str], kind: str) -> Tokenizer:
    """SentencePiece with byte fallback: `legacy` puts a space before each piece of text (Llama 2, Mistral, Phi 3),
    `first` before the first only, `none` before none (Gemma)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never")
    bases = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        (line for text in corpus() for line in text.split("\n")),  # no piece holds a line's end
        trainers.BpeTrainer(vocab_size=VOCABULARY - len(controls), special_tokens=bases, show_progress=False),
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if kind != "none" else steps)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [
        token for token in content["added_tokens"] if not token["content"].startswith("<0x")
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if kind == "first":
        content["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": "first",
            "split": False,
        }
    else:
        prepend = [{"type": "Prepend", "prepend": SPACE}] if kind == "legacy" else []
        content["normalizer"] = {"type": "Sequence", "normalizers": [*prepend, replace]}
        content["pre_tokenizer"] = None
    made = Tokenizer.from_str(json.dumps(content))
    strips = kind == "legacy" and "<|user|>" in controls  # Phi 3's turns swallow the line's end behind them
    made.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, rstrip=strips and token != "<|endoftext|>")
            for token in controls
        ]
    )
    return made


@dataclasses.dataclass(frozen=True)
class Family:
    """`config` is a transformers model type and what it is made of beside `SHAPE`."""

    name: str
    model_type: str
    tokenizer: Callable[[], Tokenizer]
    template: str | list[dict[str, str]]
    tokens: Mapping[str, str]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refused: str | None = None  # why `plan` refuses it


CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
HEADERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURNS = ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "\n\n"]
PHI = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
GEMMA_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES = {
    family.name: family
    for family in (
        Family("qwen2", "qwen2", lambda: byte_level(CHAT), QWEN2, {"eos_token": "<|endoftext|>"}),
        Family("qwen3", "qwen3", lambda: byte_level(CHAT), QWEN3, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
        Family(
            "llama3", "llama", lambda: byte_level(HEADERS), LLAMA3,
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        ),
        Family("llama2", "llama", lambda: sentencepiece([], "legacy"), LLAMA2, LLAMA_TOKENS),
        Family(
            "mistral", "mistral", lambda: sentencepiece(["[INST]", "[/INST]"], "first"), MISTRAL, LLAMA_TOKENS,
            {"sliding_window": None},
        ),
        Family(
            "gemma3", "gemma3_text", lambda: sentencepiece(TURNS, "none"), GEMMA2, GEMMA_TOKENS,
            {"query_pre_attn_scalar": 32, "layer_types": ["sliding_attention", "full_attention"]},
        ),
        Family(
            "gemma3-wrapped", "gemma3", lambda: sentencepiece(TURNS, "none"),
            [{"name": "default", "template": GEMMA3}, {"name": "tool_use", "template": "no"}], GEMMA_TOKENS,
            {"vision_config": VISION, "mm_tokens_per_image": 4},
            refused=None if importlib.util.find_spec("torchvision") else "also sees, and vLLM needs torchvision",
        ),
        Family(
            "phi3", "phi3", lambda: sentencepiece(PHI, "legacy"), PHI3,
            {**LLAMA_TOKENS, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, {"sliding_window": None},
        ),
        Family(
            "gpt2", "gpt2", lambda: byte_level(["<|endoftext|>"]), PLAIN, {"eos_token": "<|endoftext|>"},
            {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 4096},
            refused="vLLM serves no LoRA adapter on GPT2LMHeadModel",
        ),
    )
}  # fmt: skip


@functools.cache
def trained(name: str) -> str:
    """The tokenizer of a family, as JSON."""
    return FAMILIES[name].tokenizer().to_str()


def tokenizer_files(family: Family, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(trained(family.name), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096, **family.tokens}
    if isinstance(family.template, str):
        (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    else:
        settings["chat_template"] = family.template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def base_model(family: Family, folder: Path) -> Path:
    """A model folder: two random layers of hidden size 64."""
    tokenizer_files(family, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    ends = {
        f"{name}_id": tokenizer.token_to_id(token)
        for name, token in family.tokens.items()
        if name != "unk_token"
    }
    ends = {"bos_token_id": None, "pad_token_id": ends.get("eos_token_id"), **ends}
    shape = {"tie_word_embeddings": True, "vocab_size": size, **ends}
    if family.model_type == "gemma3":
        text = {**SHAPE, **shape, "query_pre_attn_scalar": 32}
        config = AutoConfig.for_model(
            "gemma3", text_config=text, image_token_index=3, **family.config, **ends
        )
    elif family.model_type == "gpt2":
        config = AutoConfig.for_model("gpt2", **shape, **family.config)
    else:
        config = AutoConfig.for_model(family.model_type, **{**SHAPE, **shape, **family.config})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():  # far enough from uniform that answers differ
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.12)
    model.save_pretrained(folder)
    return folder
