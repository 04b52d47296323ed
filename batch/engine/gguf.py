"""A GGUF file, as llama.cpp and its kin keep models, written out as a folder that training and vLLM read."""

import sys
from pathlib import Path

import gguf
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig


def convert(file: Path, folder: Path) -> None:
    """Weights expanded to bfloat16 as safetensors, config, tokenizer and chat template into `folder`."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    named = {"gguf_file": file.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **named
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **named)
    if (
        _metadata(file, "tokenizer.ggml.pre") == "smollm"
    ):  # which transformers does not read: digits stand alone
        parts = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.save_pretrained(folder)


def _metadata(file: Path, key: str) -> object:
    field = gguf.GGUFReader(file).fields.get(key)
    return field and field.contents()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
