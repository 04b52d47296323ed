"""Qwen's real vocabulary, without a hub: what a vocabulary of 151,643 tokens costs shows only with one.

The ranks of its byte-pair encoding are a resource of the package `dashscope` (Apache-2.0). A token's merge is the pair of
lower ranks that encoding its bytes ends with; the template and the end of turn are the mini base's, which are ChatML too.
"""

import base64
import importlib.util
import itertools
import shutil
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MINI_BASE = Path(__file__).parents[1] / "data/mini-base"


def ranks() -> dict[bytes, int]:
    package = importlib.util.find_spec("dashscope")  # not imported: only its resource is wanted
    assert package and package.origin
    lines = (Path(package.origin).parent / "resources/qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def merge_of(token: bytes, known: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The last merge that makes `token`, by encoding its bytes with the ranks below its own."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(known.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        _, at = min(pair for pair in pairs if pair[0] < known[token])
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def build(folder: Path) -> Path:
    """Write the tokenizer's files into `folder`."""
    known = ranks()
    letters = _byte_level_alphabet()

    def spelt(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [merge_of(token, known) for token in sorted(known, key=known.__getitem__) if len(token) > 1]
    vocabulary = {spelt(token): rank for token, rank in known.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(spelt(a), spelt(b)) for a, b in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in CONTROLS])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(MINI_BASE / name, folder / name)
    return folder


def _byte_level_alphabet() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}
