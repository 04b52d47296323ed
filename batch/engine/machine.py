"""What of an engine's settings depends on the machine: number format, memory, sizes of a step.

What a CPU gets was measured (tests/bench/RESULTS.md), and what an H200 gets, with vLLM 0.26 in the place of
0.32. What other GPUs get was read in vLLM.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import torch

from batch.engine import EngineSpec
from batch.engine.architectures import has_state
from batch.errors import InputError, InstallationError

GIB = 1 << 30
# Part of a GPU's memory that each of its engines leaves to its own CUDA context and graphs: on an H200 they
# took 7 of 140 GiB.
GPU_OUTSIDE = 0.08
GPU_SPARE = GIB // 2  # bytes of what is free left to another process that grows
# Tokens in a step at most. vLLM gives an engine made by hand 2,048, of which a full batch leaves little to
# new prompts.
GPU_STEP_TOKENS = 8192
# Steps of these many tokens run as CUDA graphs, the next larger one where none fits. vLLM's own are 51, each
# captured with and without LoRA, and end at 512, where steps of this engine begin.
GPU_GRAPHS = (1, 4, 16, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
CPU_STEP_TOKENS = 4096
MAX_LORAS = 8  # adapters that one batch may mix
# Adapters in the machine's memory. The others are read from their files again at each turn of theirs, in a
# step, while all requests wait.
CPU_LORAS = 64
LARGE_GPU = 70 * GIB  # bytes in all from which it has room for 512 requests at once; vLLM's bound too
LEAST_BFLOAT16 = (8, 0)  # compute capability
HOPPER = 9  # the same, its first part
WHOLE = "FULL"  # vLLM's name for a step that is one CUDA graph
# What FlashAttention 3 does not compute, by the config's key: DeepSeek's attention, Llama 4's chunks, biases
OTHER_ATTENTION = ("kv_lora_rank", "attention_chunk_size", "alibi")


@dataclasses.dataclass(frozen=True)
class Machine:
    """`free` and `total` are bytes, of the GPU's memory where there is one. `bfloat16`: in hardware.
    `hopper`: an H100 or H200, where vLLM's attention is FlashAttention 3.
    """

    gpu: bool
    bfloat16: bool
    free: int
    total: int
    hopper: bool = False

    @classmethod
    def found(cls, span: int = 1) -> Self:
        """This one, for an engine that spans so many GPUs.

        Raises `InstallationError` where packages for a GPU are installed and no GPU answers.
        """
        if torch.cuda.is_available():
            free, total = min(map(_gpu_memory, range(span)), key=lambda each: each[0] / each[1])
            capability = torch.cuda.get_device_capability()
            return cls(True, capability >= LEAST_BFLOAT16, free, total, capability[0] == HOPPER)
        if torch.version.cuda:
            raise InstallationError(
                "the installed packages are for an NVIDIA GPU, and none answers; check that `nvidia-smi -L` "
                "lists one, or run `make STACK=cpu setup`"
            )
        memory = psutil.virtual_memory()
        return cls(False, _cpu_has_bfloat16(), memory.available, memory.total)

    def dtype(self, wanted: str | None) -> str:
        """A CPU that has to make bfloat16 up is four times as fast in float32; a GPU that has none is given
        float16. Raises `InputError` for float32 on a GPU: vLLM's kernels for adapters there have none.
        """
        if self.gpu and wanted == "float32":
            raise InputError(
                "--dtype float32: on a GPU vLLM computes adapters in bfloat16 or float16; choose one of them"
            )
        return wanted or ("bfloat16" if self.bfloat16 else "float16" if self.gpu else "float32")

    def max_num_seqs(self, wanted: int | None) -> int:
        return wanted or (512 if self.gpu and self.total >= LARGE_GPU else 256)

    def draft_tokens(self, wanted: int | None) -> int:
        """None on a GPU: with drafts vLLM takes its older, synchronous model runner, and fills a mask for
        each drafted token."""
        return wanted if wanted is not None else 0 if self.gpu else 4

    def settings(self, spec: EngineSpec, max_num_seqs: int, draft_tokens: int) -> dict[str, Any]:
        """Arguments of vLLM's `EngineArgs`."""
        # With drafts a step must have room for every request's.
        room = max_num_seqs * (draft_tokens + 1)
        if self.gpu:
            share = min(1 / spec.sharing - GPU_OUTSIDE, (self.free - GPU_SPARE) / self.total)
            return {
                "max_num_batched_tokens": max(GPU_STEP_TOKENS, room),
                "gpu_memory_utilization": int(share * 1000) / 1000,
                "compilation_config": self._compilation(spec),
                "hf_overrides": self._head(spec),
            }
        return {
            "max_num_batched_tokens": max(CPU_STEP_TOKENS, room) if draft_tokens else None,
            "kv_cache_memory_bytes": self._cpu_cache_bytes(spec, max_num_seqs),
        }

    def _compilation(self, spec: EngineSpec) -> dict[str, Any]:
        """Nearly every step reads new prompts beside the answers that it continues, so vLLM runs it in
        pieces, a graph between every two layers' attention, which the engine's thread starts one by one. On
        Hopper a whole step is one graph: half as many rows/s again, and without compiling the pieces the
        engine is ready in half the time. Other attention cannot be captured with new prompts in it.
        """
        whole = self.hopper and has_flash_attention_3(base_config(spec))
        return {
            "cudagraph_capture_sizes": list(GPU_GRAPHS),
            **({"cudagraph_mode": WHOLE, "mode": 0} if whole else {}),
        }

    def _head(self, spec: EngineSpec) -> dict[str, str]:
        """Logits in float32, where the output layer is not quantised. Between 16 and 32 bfloat16 has steps of
        1/8: the likelier of two close labels can lose, and a score be 3 in 100 off.

        vLLM still multiplies bfloat16 numbers and copies no weights. On a CPU, `cpu/logits.py` does this.
        """
        return {} if base_config(spec).get("quantization_config") else {"head_dtype": "float32"}

    def _cpu_cache_bytes(self, spec: EngineSpec, max_num_seqs: int) -> int:
        """Bytes of KV cache that the longest legal rows can need at once, but at most a quarter of what is
        free.

        On a CPU vLLM's default claims nearly all memory, whatever the model.
        """
        config = base_config(spec)
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        number = 4 if self.dtype(spec.dtype) == "float32" else 2
        token = config["num_hidden_layers"] * heads * size * 2 * number  # keys and values
        return int(min(token * spec.max_model_len * (max_num_seqs + 1), self.free // 4))


def adapters_held(spec: EngineSpec) -> dict[str, int]:
    """Arguments of vLLM's `EngineArgs`. It would keep no more adapters in memory than one batch mixes."""
    return {"max_loras": min(spec.max_loras, MAX_LORAS), "max_cpu_loras": min(spec.max_loras, CPU_LORAS)}


@contextlib.contextmanager
def turn(spec: EngineSpec) -> Iterator[Machine]:
    """This machine, while no other engine on the same GPU starts: vLLM measures what a step needs by how much
    less memory is free after a trial of one.
    """
    if spec.sharing == 1:
        yield Machine.found(spec.tensor_parallel)
        return
    folder = Path(os.environ["VLLM_CACHE_ROOT"])  # given to each of them, see `placements`
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "starting.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Machine.found()


def base_config(spec: EngineSpec) -> dict[str, Any]:
    """The base's config; of a model that also sees, with that of the part that reads."""
    config = json.loads((Path(spec.base) / "config.json").read_text(encoding="utf-8"))
    return {**config, **(config.get("text_config") or {})}


def has_flash_attention_3(config: dict[str, Any]) -> bool:
    """Whether vLLM surely serves this base with FlashAttention 3 on Hopper. Heads above 256, or of two sizes
    as in Gemma 4, get another.
    """
    sizes = {size for key, size in config.items() if key.endswith("head_dim") and size}
    sizes = sizes or {(config.get("hidden_size") or 0) // (config.get("num_attention_heads") or 1)}
    return (
        len(sizes) == 1
        and all(0 < size <= 256 and size % 8 == 0 for size in sizes)
        and not any(config.get(key) for key in OTHER_ATTENTION)
        and all(
            has_state(name) is False and not name.startswith("Gemma4")
            for name in config.get("architectures", ["unknown"])
        )
    )


def _gpu_memory(device: int) -> tuple[int, int]:
    """Bytes free, and in all. Of all but the first GPU by the driver's word: to ask CUDA would open a context
    there, which keeps half a GiB.
    """
    if device == 0:
        free, total = torch.cuda.mem_get_info()
        return free, total
    total = torch.cuda.get_device_properties(device).total_memory
    return total - torch.cuda.device_memory_used(device), total


def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
