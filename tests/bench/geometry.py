"""The engine on a real model's shape with random weights: no download, only a GPU that holds it.

    python -m tests.bench.geometry --geometry qwen3-4b --rows 2000      # one GPU
    python -m tests.bench.geometry --geometry one-layer --rows 64       # anywhere, to see that it runs

Builds a base of that shape with Qwen's vocabulary, whose size is what a grammar's masks cost, a LoRA adapter of rank 16 that
acts, and sends distinct requests behind the full policy prompt through one to three engines on the first device, for all fields
or the labels only, and through plain `LLM.generate`. The layers are random and faint, and the head follows each token of one answer with its next:
work is that of real weights, token for token, where random ones would spell labels letter by letter and run every text to its
bound. Then `fit` on the same shape, for its speed and peak memory. Prints a table and writes geometry.json.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from batch.adapter.base_model import base_digest
from batch.adapter.bundle import Bundle, seal_bundle
from batch.adapter.registry import Registry
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.engine.process import EngineProcess
from batch.launch.devices import placements, visible_gpus
from batch.scoring.adapters import engine_spec, spec_of
from tests import qwen
from tests.conftest import copy_tokenizer
from train.config import Config
from train.mini_base.requests import requests

ROOT = Path(__file__).parents[2]
WARM_ROWS = 64
VOCABULARY = 151_936  # rows of Qwen3's embedding
FAINT = 0.02  # of a layer's output
SHARD = "2GB"


def shape(name: str) -> dict[str, Any]:
    """The numbers of a Qwen3 config."""
    if name == "qwen3-4b":
        found = Config.load(ROOT / "train/qwen3-4b.toml").base.shape
        assert found is not None
        return dataclasses.asdict(found)
    return {"model_type": "qwen3", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip


def build(name: str, folder: Path) -> Bundle:
    """A base that writes one answer, and a bundle for it, both in `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    base, tokenizer = folder / "base", qwen.build(_made(folder / "tokenizer"))
    contract = Contract.load(ROOT / "data/contract.toml")
    renderer = Renderer.load(tokenizer, contract)
    config = Qwen3Config(
        **{**shape(name), "vocab_size": VOCABULARY, "tie_word_embeddings": False},
        eos_token_id=renderer.end_of_turn_id,
        pad_token_id=renderer.pad_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device), torch.no_grad():
        model = Qwen3ForCausalLM(config)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(FAINT)
            layer.mlp.down_proj.weight.mul_(FAINT)
        embedding, head = model.model.embed_tokens.weight.normal_(), model.lm_head.weight.zero_()
        answer = _canonical(contract, renderer)
        for place, (last, following) in enumerate(itertools.pairwise([renderer.suffix_ids[-1], *answer])):
            # Of a token's followers the last is the likeliest: it is in the text, where no grammar chooses.
            head[following] += embedding[last] / embedding[last].norm() / 2 * (1 + place / len(answer))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(base, max_shard_size=SHARD)
    copy_tokenizer(tokenizer, base)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peft = get_peft_model(model, LoraConfig(r=16, target_modules=linear, task_type="CAUSAL_LM"))
    for parameter in (p for n, p in peft.named_parameters() if "lora_B" in n):
        torch.nn.init.normal_(parameter, std=0.02)
    registry = Registry(folder / "adapters")
    staging = registry.staging()
    peft.save_pretrained(staging)
    (staging / "README.md").unlink(missing_ok=True)
    del model, peft
    torch.cuda.empty_cache()
    copy_tokenizer(base, staging)
    (staging / "contract.json").write_text(contract.to_json())
    (staging / "metrics.json").write_text("{}")
    (staging / "calibration.json").write_text('{"calibrated": false}')
    seal_bundle(
        staging, {"base": {"ref": str(base), "revision": None, "sha256": base_digest(base)}, "rank": 16}
    )
    return registry.add(staging)


def _canonical(contract: Contract, renderer: Renderer) -> list[int]:
    """The first training answer with a text whose tokens occur once in it: each tells which one follows."""
    for line in (ROOT / "data/v3/train.jsonl").read_text().splitlines():
        row = json.loads(line)
        answer = renderer.encode_answer({field.name: row[field.name] for field in contract.fields})
        opened = max(i for i, token in enumerate(answer) if b'":"' in renderer.token_bytes(token))
        if all(answer.count(token) == 1 for token in answer[opened + 1 :]):
            return answer
    raise LookupError("every training answer repeats a token in its text")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def variants(gpu: bool) -> dict[str, dict[str, Any]]:
    """What is compared: engines on one device, what they are asked, and other fields of their spec."""
    if not gpu:
        return {"plain": {"draft_tokens": 0}, "drafts 8": {"draft_tokens": 8}}
    return {
        "one engine": {},
        "two engines": {"engines": 2},
        "three engines": {"engines": 3},
        "one engine, labels only": {"reasons": "none"},
        "two engines, labels only": {"engines": 2, "reasons": "none"},
        "1,024 at once": {"max_num_seqs": 1024},
        "drafts 4": {"draft_tokens": 4},
    }


def measure(
    bundle: Bundle, base: Path, texts: list[str], engines: int = 1, reasons: str = "all", **options: Any
) -> dict[str, Any]:
    """Rows and tokens a second of engines on the first device, after `WARM_ROWS` rows each that nobody counts."""
    began = time.monotonic()
    ids = list(enumerate(bundle.renderer.encode_requests(texts)))
    adapter = spec_of(bundle, reasons)
    with contextlib.ExitStack() as stack:
        placed = placements(",".join(["0"] * engines) if visible_gpus() else str(engines), None)
        started = [
            stack.enter_context(EngineProcess(engine_spec(base, [bundle], **options, **own)))
            for own in placed
        ]
        for engine in started:
            engine.load(adapter)
        ready = time.monotonic() - began

        def answered(engine: EngineProcess, asked: list[tuple[int, Any]]) -> int:
            engine.submit(adapter.name, asked)
            left, tokens = len(asked), 0
            while left:
                done = engine.poll()
                left -= len(done)
                tokens += sum(len(completion.token_ids) for completion in done)
            return tokens

        with ThreadPoolExecutor(engines) as pool:
            list(pool.map(answered, started, [ids[:WARM_ROWS]] * engines))
            steps, counted = sum(engine.usage.steps for engine in started), time.monotonic()
            tokens = sum(pool.map(answered, started, [ids[first::engines] for first in range(engines)]))
            seconds = time.monotonic() - counted
        return {
            "rows/s": len(ids) / seconds,
            "answer tokens/s": tokens / seconds,
            "steps/row": (sum(engine.usage.steps for engine in started) - steps) / len(ids),
            "start s": ready,
            "device": started[0].facts["device"],
        }


def peer(bundle: Bundle, base: Path, texts: list[str]) -> dict[str, Any]:
    """The same rows through plain `LLM.generate`: the same adapter, grammar and log-probabilities."""
    prompts = [list(bundle.renderer.prompt(ids)) for ids in bundle.renderer.encode_requests(texts)]
    asked = {
        "prompts": prompts,
        "model": str(base),
        "adapter": str(bundle.path),
        "length": bundle.renderer.max_model_len,
        "grammar": bundle.contract.grammar,
        "tokens": bundle.renderer.max_answer_tokens,
        "stop": bundle.renderer.end_of_turn_id,
    }
    # a process of its own: one that has had an engine does not give its memory back
    code = (
        "import json, sys, time\nfrom vllm import LLM, SamplingParams\nfrom vllm.lora.request import LoRARequest\n"
        "from vllm.sampling_params import StructuredOutputsParams\nasked = json.load(sys.stdin)\n"
        "llm = LLM(model=asked['model'], enable_lora=True, max_lora_rank=16, max_model_len=asked['length'], dtype='bfloat16')\n"
        "params = SamplingParams(temperature=0.0, max_tokens=asked['tokens'], logprobs=5, stop_token_ids=[asked['stop']],\n"
        "    structured_outputs=StructuredOutputsParams(regex=asked['grammar']))\n"
        "lora = LoRARequest('peer', 1, asked['adapter'])\nprompts = [{'prompt_token_ids': ids} for ids in asked['prompts']]\n"
        f"llm.generate(prompts[:{WARM_ROWS}], params, lora_request=lora, use_tqdm=False)\nbegan = time.monotonic()\n"
        "done = llm.generate(prompts, params, lora_request=lora, use_tqdm=False)\nseconds = time.monotonic() - began\n"
        "tokens = sum(len(each.outputs[0].token_ids) for each in done)\n"
        "print(json.dumps({'rows/s': len(done) / seconds, 'answer tokens/s': tokens / seconds}))\n"
    )
    return _told(
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            env={"VLLM_REGEX_COMPILATION_TIMEOUT_S": "600", "VLLM_CPU_KVCACHE_SPACE": "2", **os.environ},
            check=False,
        )
    )


def _told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON that a process printed last, or how it failed."""
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}


def fit(base: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Seconds a step and peak memory of `batch-train fit` on the shape, in a process of its own."""
    recipe = (ROOT / "train/qwen3-4b.toml").read_text().splitlines()
    lines = [f'model = "{base}"' if line.startswith("model =") else line for line in recipe]
    lines = [
        f"max_steps = {steps}" if line.startswith(("epochs", "max_steps")) else line
        for line in lines
        if not line.startswith("revision")
    ]
    (folder / "fit.toml").write_text("\n".join(lines))
    code = (
        "import json, resource, sys, time, torch\n"
        "from pathlib import Path\nfrom batch.adapter.registry import Registry\nfrom train.config import Config\nfrom train.fit.inputs import prepare\nfrom train.fit.qlora import train\n"
        "from rich.console import Console\nfrom train.fit.qlora import build_trainer\n"
        "job = prepare(Config.load(Path(sys.argv[1])))\nrun = Path(sys.argv[2])\nrun.mkdir()\n"
        "trainer = build_trainer(job, run, Console(stderr=True))\nbegan = time.monotonic()\ntrainer.train()\n"
        "seconds = time.monotonic() - began\n"
        "cuda = torch.cuda.is_available()\n"
        "peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "print(json.dumps({'seconds a step': seconds / trainer.state.global_step, 'peak MiB': peak / 2**20}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "fit.toml"), str(folder / "run")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    return _told(done)


@click.command()
@click.option(
    "--geometry", type=click.Choice(["qwen3-4b", "one-layer"]), default="qwen3-4b", show_default=True
)
@click.option("--rows", default=2000, show_default=True)
@click.option("--fit-steps", default=6, show_default=True, help="0 leaves fit out")
@click.option("--out", type=click.Path(path_type=Path), default=Path("geometry.json"), show_default=True)
def main(geometry: str, rows: int, fit_steps: int, out: Path) -> None:
    import torch

    texts = list(
        dict.fromkeys(
            request.text for request, _ in zip(requests(random.Random(0)), range(2 * rows), strict=False)
        )
    )[:rows]
    folder = Path(tempfile.mkdtemp(prefix="geometry-"))
    results: dict[str, Any] = {}
    try:
        bundle = build(geometry, folder)
        for name, options in variants(torch.cuda.is_available()).items():
            try:
                results[name] = measure(bundle, folder / "base", texts, **options)
            except Exception as error:  # a variant that this machine cannot run is a result too
                results[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
            out.write_text(json.dumps(results, indent=2))
        results["LLM.generate"] = peer(bundle, folder / "base", texts)
        out.write_text(json.dumps(results, indent=2))
        if fit_steps:
            results["fit"] = fit(folder / "base", folder, fit_steps)
            out.write_text(json.dumps(results, indent=2))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table("", "", title=f"{geometry}, {len(texts)} rows", title_justify="left")
    for name, result in results.items():
        table.add_row(
            name,
            ", ".join(
                f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
                for key, value in result.items()
            ),
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
