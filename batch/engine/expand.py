"""A base model in 4 bits, and the same weights expanded: what an adapter was trained on, as vLLM can load it.

vLLM 0.32 reads no 4-bit bitsandbytes weights. Each of these is one of 16 values times its block's scale, so
they are written out in a dtype that vLLM serves; what is served is then what was trained, but for rounding.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

KEPT = (".json", ".jinja", ".txt", ".model")  # config, tokenizer and template; weights are written anew


def load_base(
    folder: Path, kind: str, double: bool, dtype: torch.dtype, device: str | int = "cpu"
) -> PreTrainedModel:
    """The base in `folder`, its linear layers in 4 bits of `kind` (`nf4`, `fp4`) or as they are (`none`)."""
    transformers.utils.logging.disable_progress_bar()
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )
    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=None if kind == "none" else four_bit,
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    base.config.use_cache = False
    for module in base.modules():
        if isinstance(module, Linear4bit):
            # Where a CPU has AVX512-BF16, bitsandbytes repacks a weight at the first evaluation, and rounds
            # its scales for good: training would go on with other weights than before, and than a resumed
            # run's.
            module.support_avx512bf16_for_cpu = False
    return base


def expand(original: Path, folder: Path, kind: str, double: bool, dtype: str) -> None:
    """Write the base at `original` into `folder`, quantised once and expanded to `dtype`.

    On the CPU whatever the machine has, so that it gives the same bytes anywhere.
    """
    transformers.utils.logging.set_verbosity_error()
    model = load_base(original, kind, double, getattr(torch, dtype))
    model.dequantize()
    model.save_pretrained(folder)
    for file in original.iterdir():
        if file.suffix in KEPT and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((original / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    text = json.dumps({**config, "dtype": dtype}, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    expand(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "True", sys.argv[5])
