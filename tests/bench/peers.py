"""Other ways to do the same job, each as its users would write it. One call is one process:

    python -m tests.bench.peers NAME JOB.json

JOB.json holds `base`, `adapter`, `contract`, `input`, `output`, `dtype`, `threads` and `max_tokens`. Each peer reads the
Parquet input, writes id and answer to the Parquet output and prints one line of JSON: seconds from the process's start
until its model is ready, until the first answer (where it can be seen) and until the output is written.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
MEMORY_SHARE = 0.5
STARTED = psutil.Process().create_time()


def since_start() -> float:
    return float(time.time() - STARTED)


def read(job: dict[str, Any]) -> tuple[list[str], list[str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(job["input"])
    return table["id"].to_pylist(), table["request"].to_pylist()


def write(job: dict[str, Any], ids: list[str], answers: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ids, "answer": answers}), job["output"])


def messages(job: dict[str, Any], request: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": job["system"]}, {"role": "user", "content": request}]


def engine_options(job: dict[str, Any]) -> dict[str, Any]:
    lora = {"enable_lora": True, "max_lora_rank": job["rank"]}
    # vLLM's default share of the memory can be more than one NUMA node of a small machine has free.
    return {
        "dtype": job["dtype"],
        "max_model_len": job["max_model_len"],
        "gpu_memory_utilization": MEMORY_SHARE,
        **lora,
    }


# --- LLM.generate -------------------------------------------------------------------------------------------------


def generate(job: dict[str, Any], chunk: int | None = None) -> dict[str, Any]:
    """pyarrow in, `LLM.generate` over the prompts, pyarrow out."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import StructuredOutputsParams

    ids, requests = read(job)
    whitespace = {"backend": "xgrammar", "disable_any_whitespace": True}
    llm = LLM(
        job["base"], structured_outputs_config=whitespace, disable_log_stats=False, **engine_options(job)
    )
    tokenizer = llm.get_tokenizer()
    ready = since_start()
    prompts = [
        {
            "prompt_token_ids": tokenizer.apply_chat_template(
                messages(job, r), add_generation_prompt=True, return_dict=False
            )
        }
        for r in requests
    ]
    params = SamplingParams(
        temperature=0,
        max_tokens=job["max_tokens"],
        structured_outputs=StructuredOutputsParams(json=job["schema"]),
    )
    lora = LoRARequest("adapter", 1, job["adapter"])
    answers: list[str] = []
    first = None
    for start in range(0, len(prompts), chunk or len(prompts)):
        outputs = llm.generate(
            prompts[start : start + (chunk or len(prompts))], params, lora_request=lora, use_tqdm=False
        )
        first = first or since_start()
        answers += [output.outputs[0].text for output in outputs]
    write(job, ids, answers)
    done = since_start()
    steps = next((m.count for m in llm.get_metrics() if m.name == "vllm:iteration_tokens_total"), None)
    return {"ready": ready, "first": first, "done": done, "steps": steps}


def chunked(job: dict[str, Any]) -> dict[str, Any]:
    """The same in chunks of 256, as one does to write results while going on."""
    return generate(job, 256)


def bare(job: dict[str, Any]) -> dict[str, Any]:
    """`LLM(...)` and one generate: the earliest that a first answer can be had from plain vLLM."""
    return generate({**job, "input": job["one_row"]})


# --- vllm run-batch -----------------------------------------------------------------------------------------------


def run_batch(job: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's batch format in JSONL, a LoRA module by name, `response_format`."""
    import runpy

    ids, requests = read(job)
    source, target = (
        Path(job["output"]).with_suffix(".in.jsonl"),
        Path(job["output"]).with_suffix(".out.jsonl"),
    )
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": job["schema"], "strict": True}}
    with source.open("w") as file:
        for row, request in zip(ids, requests, strict=True):
            body = {
                "model": "adapter",
                "messages": messages(job, request),
                "temperature": 0,
                "max_completion_tokens": job["max_tokens"],
                "response_format": form,
            }
            file.write(
                json.dumps({"custom_id": row, "method": "POST", "url": "/v1/chat/completions", "body": body})
                + "\n"
            )
    whitespace = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
    sys.argv = [
        "run_batch",
        "-i",
        str(source),
        "-o",
        str(target),
        "--model",
        job["base"],
        "--dtype",
        job["dtype"],
    ]
    sys.argv += ["--gpu-memory-utilization", str(MEMORY_SHARE)]
    sys.argv += ["--max-model-len", str(job["max_model_len"]), "--structured-outputs-config", whitespace]
    sys.argv += [
        "--enable-lora",
        "--max-lora-rank",
        str(job["rank"]),
        "--lora-modules",
        f"adapter={job['adapter']}",
    ]
    with contextlib.suppress(SystemExit):
        runpy.run_module("vllm.entrypoints.openai.run_batch", run_name="__main__")
    found = {}
    for line in target.read_text().splitlines():
        entry = json.loads(line)
        found[entry["custom_id"]] = entry["response"]["body"]["choices"][0]["message"]["content"]
    write(job, ids, [found[row] for row in ids])
    return {"ready": None, "first": None, "done": since_start()}


# --- Ray Data LLM -------------------------------------------------------------------------------------------------


def ray_data(job: dict[str, Any]) -> dict[str, Any]:
    """Ray Data's vLLM processor over the Parquet input."""
    import ray
    import torch
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    # Each stage asks for a logical CPU; with as many as there are cores the engine would wait for ever.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
    config = vLLMEngineProcessorConfig(
        model_source=job["base"],
        engine_kwargs={
            **engine_options(job),
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        },
        placement_group_config=None
        if torch.cuda.is_available()
        else {"bundles": [{"CPU": 1}]},  # it asks for a GPU
        batch_size=256,
        concurrency=1,
        log_engine_metrics=False,
    )
    params = {
        "temperature": 0,
        "max_tokens": job["max_tokens"],
        "structured_outputs": {"json": job["schema"]},
    }

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": row["id"],
            "model": job["adapter"],
            "messages": messages(job, row["request"]),
            "sampling_params": params,
        }

    def keep(row: dict[str, Any]) -> dict[str, Any]:
        return {"id": row["id"], "answer": row["generated_text"]}

    processor = build_processor(config, preprocess=ask, postprocess=keep)
    table = processor(ray.data.read_parquet(job["input"])).to_pandas()
    write(job, table["id"].tolist(), table["answer"].tolist())
    return {"ready": None, "first": None, "done": since_start()}


# --- transformers + peft ------------------------------------------------------------------------------------------


def transformers_peft(job: dict[str, Any], batch: int) -> dict[str, Any]:
    """`generate` with the adapter on the base and a prefill, no grammar.

    The prefill is `{"`, one token, as in training: after a lone `{` this adapter leaves the quote out.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(job["threads"])
    ids, requests = read(job)
    tokenizer = AutoTokenizer.from_pretrained(job["base"], padding_side="left")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=getattr(torch, job["dtype"])).to(device)
    model = PeftModel.from_pretrained(model, job["adapter"]).eval()
    ready, first = since_start(), None
    answers: list[str] = []
    for start in range(0, len(requests), batch):
        chats = [messages(job, request) for request in requests[start : start + batch]]
        prompts = [
            tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) + '{"'
            for chat in chats
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
        with torch.inference_mode():
            made = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=job["max_tokens"],
                pad_token_id=tokenizer.pad_token_id,
            )
        first = first or since_start()
        texts = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += ['{"' + text for text in texts]
    write(job, ids, answers)
    return {"ready": ready, "first": first, "done": since_start()}


PEERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "generate": generate,
    "chunked": chunked,
    "bare": bare,
    "run-batch": run_batch,
    "ray-data": ray_data,
    "peft-1": lambda job: transformers_peft({**job, "input": job["few_rows"]}, 1),
    "peft-32": lambda job: transformers_peft({**job, "input": job["some_rows"]}, 32),
    "peft-128": lambda job: transformers_peft({**job, "input": job["some_rows"]}, 128),
    "peft-256": lambda job: transformers_peft({**job, "input": job["some_rows"]}, 256),
}


def labels(answers: Iterator[tuple[str, str]], fields: list[str]) -> dict[str, tuple[Any, ...] | None]:
    """The scored fields of each answer by id; None for an answer that is not the JSON asked for."""
    found: dict[str, tuple[Any, ...] | None] = {}
    for row, answer in answers:
        try:
            value = json.loads(re.sub(r"}[^}]*$", "}", answer))
            found[row] = tuple(value[field] for field in fields)
        except (ValueError, KeyError, TypeError):
            found[row] = None
    return found


if __name__ == "__main__":
    result = PEERS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
    print("RESULT " + json.dumps(result), flush=True)
    os._exit(0)  # an engine that does not end by itself must not count
