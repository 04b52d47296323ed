"""The memory that a fit will take, part by part, from the model's shape alone."""

import torch
from peft import PeftModel

from train.config import Config
from train.fit.model import compute_dtype

# Bytes a 4-bit weight: half a byte, an absmax for each 64 weights as float32, or with double quantisation as
# one byte and a float32 for each 256 of those (QLoRA, arXiv:2305.14314, section 3).
FOUR_BIT = {False: 0.5 + 4 / 64, True: 0.5 + 1 / 64 + 4 / (64 * 256)}


def estimate_memory(model: PeftModel, config: Config, longest: int) -> dict[str, tuple[float, str]]:
    """Bytes by part, each with its formula, for a batch of the longest rows; without the CUDA context."""
    shape, training = model.config.get_text_config(), config.training
    output = model.get_output_embeddings()
    linear = [m.weight.numel() for m in model.modules() if type(m) is torch.nn.Linear and m is not output]
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    packed = sum(linear) - adapter  # LoRA's own matrices are linear layers too
    whole = sum(p.numel() for p in model.parameters()) - adapter - packed
    # A recipe with a shape is meant for a GPU, wherever `plan` itself runs.
    on_gpu = config.quantisation.compute_dtype == "auto" and config.base.shape is not None
    width = 2 if on_gpu or compute_dtype(config.quantisation) == torch.bfloat16 else 4
    tokens = training.batch_size * longest
    # Kept for the backward pass in each layer: inputs of two norms and of seven projections, and the
    # products' halves.
    own_heads, hidden = shape.num_attention_heads, shape.hidden_size
    heads = own_heads + 2 * (getattr(shape, "num_key_value_heads", None) or own_heads)
    head_size = getattr(shape, "head_dim", None) or hidden // own_heads
    per_layer = 6 * hidden + 4 * heads * head_size + 5 * getattr(shape, "intermediate_size", 4 * hidden)
    if training.gradient_checkpointing:
        kept = shape.num_hidden_layers * shape.hidden_size + per_layer
        formula = (
            f"{tokens} tokens x ({shape.num_hidden_layers} layer inputs + one layer recomputed) x "
            f"{width} bytes"
        )
    else:
        kept = shape.num_hidden_layers * per_layer
        formula = f"{tokens} tokens x {shape.num_hidden_layers} layers x {per_layer} values x {width} bytes"
    whole_base = config.quantisation.type == "none"
    width_of_base = 4.0 if whole_base else FOUR_BIT[config.quantisation.double]
    return {
        "base" if whole_base else "4-bit base": (
            packed * width_of_base,
            f"{packed:,} weights x {width_of_base:.3f} bytes",
        ),
        "embeddings, norms": (whole * 4.0, f"{whole:,} weights x 4 bytes"),
        "adapter": (adapter * 4.0, f"{adapter:,} weights x 4 bytes"),
        "gradients": (adapter * 4.0, f"{adapter:,} x 4 bytes"),
        "optimiser": (adapter * 8.0, f"{adapter:,} x 8 bytes (AdamW's two moments)"),
        "activations": (float(tokens * kept * width), formula),
        "one expanded weight": (float(max(linear) * width), f"{max(linear):,} x {width} bytes"),
    }
