"""The vLLM engine: LoRA hot-loading, guided JSON decoding, greedy, token ids in, log-probabilities out."""

import functools
import itertools
import math
import os
from pathlib import Path
from typing import Any, get_args

from batch.adapter.peft_checks import lint
from batch.engine import ADAPTER_MOVES, CANARY_ANSWER, AdapterSpec, Asked, Completion, Continued, EngineSpec
from batch.engine import alternatives as others
from batch.engine.drafts import AnswerDrafter, AnswerPath, speculation
from batch.engine.parts import compiled, placed_pairs
from batch.engine.patches import idle, installed
from batch.engine.refusals import refusals
from batch.errors import AdapterError, EngineError

# The engine already has a process of its own; vLLM's second one would only add a hop and half a minute of
# start-up.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On a CPU, threads shared out by a step's longest contexts would add up a row's attention in an order that
# depends on the other rows.
os.environ.setdefault("VLLM_CPU_ATTN_SPLIT_KV", "0")

from batch.engine.machine import Machine, adapters_held, base_config, turn

MACHINE = Machine.found()  # in front of vLLM, which takes half a minute to find that there is no GPU
if not MACHINE.gpu:  # the model is not compiled there; one small function was, in three seconds of each start
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.config.lora import MaxLoRARanks
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from batch.engine import vllm_guide

CANARY_KEY = "canary"
# What decides an answer besides the logits and the grammar; reported at load, read off the parameters that
# are used.
DECODING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
    "stop_token_ids",
)


class VllmEngine:
    """One `LLMEngine`, driven by add and step so that new requests join while others run."""

    def __init__(self, spec: EngineSpec) -> None:
        self._requests: dict[str, tuple[int, AnswerPath]] = {}  # by vLLM's request id
        self._adapters: dict[str, tuple[AdapterSpec, SamplingParams, LoRARequest | None]] = {}
        self._done: list[Completion] = []  # found, and not yet given out by a step
        # vLLM keeps weights by this number: one used again, even after a refusal, serves the earlier ones
        self._lora_ids = itertools.count(1)
        self._max_num_seqs = self.at_once(spec)
        # the parts of an engine that spans devices are processes, in which no drafter has the paths
        self._draft_tokens = MACHINE.draft_tokens(spec.draft_tokens) if spec.tensor_parallel == 1 else 0
        self._dtype = MACHINE.dtype(spec.dtype)
        if not MACHINE.gpu:
            from batch.engine.cpu import linear, logits, lora, sampling

            for module in (linear, logits, lora, sampling):
                module.install()
        vllm_guide.install()
        if spec.threads:
            torch.set_num_threads(spec.threads)
        with turn(spec) as machine, refusals(f"vLLM cannot serve {spec.base}"):
            settings = machine.settings(spec, self._max_num_seqs, self._draft_tokens)
            self._engine = LLMEngine.from_engine_args(
                EngineArgs(
                    model=spec.base,
                    tokenizer=spec.tokenizer,
                    dtype=self._dtype,  # type: ignore[arg-type]
                    seed=spec.seed,
                    max_model_len=_max_model_len(spec, self._draft_tokens),
                    max_num_seqs=self._max_num_seqs,
                    enable_lora=True,
                    max_lora_rank=_lora_rank(spec.max_lora_rank),
                    **adapters_held(spec),
                    lora_target_modules=list(spec.lora_modules) if spec.lora_modules else None,
                    enable_prefix_caching=True,
                    speculative_config=speculation(self._draft_tokens),
                    structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                    generation_config="vllm",  # the model's own generation_config.json must not set sampling
                    load_format="safetensors",
                    trust_remote_code=False,
                    language_model_only=True,  # requests are texts: what sees or hears is not even loaded
                    disable_log_stats=True,
                    tensor_parallel_size=spec.tensor_parallel,
                    distributed_executor_backend="uni" if spec.tensor_parallel == 1 else "mp",
                    **settings,
                )
            )
        vllm_guide.fill_in_turn(self._engine)
        self._compiled = self._engine.collective_rpc(compiled)[0]
        self._wanted_graphs = settings.get("compilation_config", {}).get("cudagraph_mode")

    @staticmethod
    def at_once(spec: EngineSpec) -> int:
        return MACHINE.max_num_seqs(spec.max_num_seqs)

    @property
    def in_flight(self) -> int:
        return len(self._requests) + len(self._done)

    def facts(self) -> dict[str, Any]:
        import vllm

        return {
            "engine": "vllm",
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "device": current_platform.device_type,
            "dtype": self._dtype,
            "threads": torch.get_num_threads(),
            "max_num_seqs": self._max_num_seqs,
            "tensor_parallel": self._engine.vllm_config.parallel_config.tensor_parallel_size,
            "draft_tokens": self._draft_tokens,
            "patches": dict(installed()),
            **self._compiled,
            **({"cudagraph_wanted": self._wanted_graphs} if self._wanted_graphs else {}),
        }

    def load(self, adapter: AdapterSpec) -> dict[str, Any]:
        lora = None
        if adapter.path is not None:
            lora = LoRARequest(adapter.name, next(self._lora_ids), str(Path(adapter.path).resolve()))
            # By itself: in a step, a refusal would take the requests that run with it.
            with refusals(f"vLLM refuses adapter {adapter.name[:12]}"):
                self._engine.add_lora(lora)
            self._refuse_partial(adapter, lora)
        if adapter.grammar is not None:
            vllm_guide.automaton_of(adapter.grammar)  # here a refusal has its reason
        guided = self._guided(adapter)
        with refusals(f"vLLM refuses the canary of adapter {adapter.name[:12]}"):
            seen = self._prove(adapter, lora)
        self._adapters[adapter.name] = (adapter, guided, lora)
        if self._draft_tokens and adapter.drafts not in AnswerDrafter.paths:
            AnswerDrafter.paths.append(adapter.drafts)
        decoding = {name: getattr(guided, name) for name in DECODING}
        return {**seen, "decoding": decoding, "patches_idle": idle()}

    def add(self, adapter: str, key: int, request: Asked) -> None:
        spec, params, lora = self._adapters[adapter]
        if isinstance(request, Continued):
            params = self._continuing(adapter, request.grammar)
            prompt = [*spec.prompt(request.request_ids), *request.answer_ids]
        else:
            prompt = spec.prompt(request)
        try:
            self._engine.add_request(str(key), {"prompt_token_ids": prompt}, params, lora_request=lora)
        except (ValueError, VLLMClientError):  # a request that vLLM refuses is that row's problem
            self._done.append(Completion(key, [], [], "error"))
        else:
            self._requests[str(key)] = key, spec.drafts

    def step(self) -> list[Completion]:
        if self._requests:
            self._step()
        done, self._done = self._done, []
        return done

    def _step(self) -> RequestOutput | None:
        """One step of the engine. What it finished is kept for `step`; the canary's output is returned."""
        canary = None
        for output in self._engine.step():
            if isinstance(output, RequestOutput) and output.finished:
                if output.request_id == CANARY_KEY:
                    canary = output
                else:
                    self._done.append(self._completion(output))
        return canary

    def _completion(self, output: RequestOutput) -> Completion:
        key, path = self._requests.pop(output.request_id)
        answer = output.outputs[0]
        ids = list(answer.token_ids)
        logprobs, beside = others.read(answer.logprobs, ids, path)
        if answer.finish_reason == "stop":
            del ids[-1:], logprobs[-1:]  # the end of turn
        finish = answer.finish_reason if answer.finish_reason in ("stop", "length") else "error"
        return Completion(key, ids, logprobs, finish, output.num_cached_tokens or 0, beside)  # type: ignore[arg-type]

    def _guided(self, adapter: AdapterSpec) -> SamplingParams:
        grammar = adapter.grammar and vllm_guide.specification(adapter.grammar, adapter.labels)
        return self._sampling(adapter, grammar, logprobs=others.COUNT, max_tokens=adapter.max_tokens)

    @functools.lru_cache(64)  # noqa: B019  # lives as long as its process
    def _continuing(self, adapter: str, grammar: str) -> SamplingParams:
        spec, _, _ = self._adapters[adapter]
        return self._sampling(spec, grammar, logprobs=0, max_tokens=spec.max_tokens)

    @staticmethod
    def _sampling(adapter: AdapterSpec, grammar: str | None, **options: Any) -> SamplingParams:
        return SamplingParams(
            temperature=0.0,
            stop_token_ids=[adapter.stop_id],
            detokenize=False,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=grammar) if grammar else None,
            skip_clone=True,  # vLLM would copy them deeply for each request
            **options,
        )

    def _refuse_partial(self, adapter: AdapterSpec, lora: LoRARequest) -> None:
        """vLLM silently leaves out what it has no place for: every pair of matrices must have one."""
        wanted = [module for module in lint(Path(lora.lora_path)) if not module.in_tower]
        for served in self._engine.collective_rpc(placed_pairs, args=(lora.lora_int_id,)):
            if served != len(wanted):
                raise AdapterError(
                    f"vLLM serves {served} of the {len(wanted)} layers that adapter {adapter.name[:12]} "
                    "changes; "
                    "it was trained on another kind of base model, name that one"
                )

    def _prove(self, adapter: AdapterSpec, lora: LoRARequest | None) -> dict[str, Any]:
        """An adapter can load and do nothing, and a grammar can be ignored, both without an error: look."""
        seen: dict[str, Any] = {}
        prompt = adapter.prompt(adapter.canary_ids)
        free = self._sampling(adapter, None, logprobs=20, max_tokens=1)
        if lora is not None:
            base = self._first_token(prompt, free, None)
            tuned = self._first_token(prompt, free, lora)
            for whose, seen_there in (("the base model", base), (f"adapter {adapter.name[:12]}", tuned)):
                if not all(map(math.isfinite, seen_there.values())):
                    raise AdapterError(f"{whose} overflows: a log-probability of the canary is not a number")
            shared = base.keys() & tuned.keys()
            # with no token among the first of both it moved by more than the gap between them
            gap = abs(max(tuned.values()) - min(base.values()))
            moved = max((abs(base[i] - tuned[i]) for i in shared), default=gap)
            if not moved >= ADAPTER_MOVES and adapter.strict:
                raise AdapterError(
                    f"adapter {adapter.name[:12]} loads but changes nothing: on the canary no "
                    "log-probability moved by "
                    f"{ADAPTER_MOVES}; its module names or its base do not match, train it again"
                )
            seen["adapter_moves_logprob_by"] = moved
        if adapter.grammar is None:
            return seen
        # A model that has learned the contract would not start an answer so: only a grammar can make it.
        other = self._sampling(adapter, CANARY_ANSWER, logprobs=0, max_tokens=1)
        seen["grammar_holds"] = set(self._first_token(prompt, other, lora)) <= set(adapter.canary_answer_ids)
        if not seen["grammar_holds"] and adapter.strict:
            raise AdapterError(
                "guided decoding does not act: the canary's answer ignored its grammar; check the "
                "vLLM version"
            )
        # The first row finds the contract's grammar compiled and the instructions in the prefix cache.
        self._first_token(prompt, self._sampling(adapter, adapter.grammar, logprobs=0, max_tokens=1), lora)
        return seen

    def _first_token(
        self, prompt: list[int], params: SamplingParams, lora: LoRARequest | None
    ) -> dict[int, float]:
        """Log-probabilities at the first generated token, by token id."""
        self._engine.add_request(CANARY_KEY, {"prompt_token_ids": prompt}, params, lora_request=lora)
        while (output := self._step()) is None:
            pass  # other adapters' requests may be running
        if output.outputs[0].finish_reason not in ("stop", "length"):
            raise EngineError("vLLM could not run the canary; its log has the reason")
        flat = output.outputs[0].logprobs
        first = slice(flat.start_indices[0], flat.end_indices[0])
        return dict(zip(flat.token_ids[first], flat.logprobs[first], strict=True))


def _max_model_len(spec: EngineSpec, draft_tokens: int) -> int:
    """With room for drafts behind the longest row, as far as the base has positions."""
    positions = base_config(spec).get("max_position_embeddings", spec.max_model_len)
    return max(spec.max_model_len, min(spec.max_model_len + draft_tokens, int(positions)))


def _lora_rank(rank: int) -> int:
    """The least rank that vLLM's kernels are built for and that fits."""
    return min(int(allowed) for allowed in get_args(MaxLoRARanks) if allowed >= rank)
