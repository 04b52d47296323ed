"""The engine: token ids in, answer ids and their log-probabilities out.

`vllm.py` is the real one, and this folder the only importer of vllm; `replay.py` is the shipped stand-in for
I/O and fault tests. Both implement :class:`Engine` and run inside a process of their own, behind
:class:`batch.engine.process.EngineProcess`.
"""

import dataclasses
import importlib
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.contract.labels_first import LabelsFirst
from batch.engine.drafts import AnswerPath, answer_path
from batch.imports import uncollected

# Where each engine's class is; nothing else lists them. The first is what serves, the others stand in for it.
ENGINES: Mapping[str, str] = MappingProxyType(
    {"vllm": "batch.engine.vllm:VllmEngine", "replay": "batch.engine.replay:ReplayEngine"}
)
DEFAULT_ENGINE = next(iter(ENGINES))


class Continued(NamedTuple):
    """A request whose answer has begun: asked for is the rest, under an expression of its own."""

    request_ids: Sequence[int]
    answer_ids: Sequence[int]
    grammar: str


Alternatives = Mapping[int, Sequence[tuple[int, float]]]
Asked = Sequence[int] | Continued  # ids of a request's text, or a request that goes on


class Completion(NamedTuple):
    """What the engine made of one request.

    `token_ids` leaves out the end of turn; `logprobs` holds each of their natural log-probabilities after the
    grammar's mask, so log P(token | legal). `cached` counts the prompt tokens taken from the prefix cache.
    `others` are legal tokens that were likely in the place of one: by its index ``(token, log-probability)``;
    see `alternatives.py`. None inside a free text.
    """

    key: int
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    finish: Literal["stop", "length", "error"]
    cached: int = 0
    others: Alternatives | None = None


@dataclasses.dataclass(frozen=True)
class EngineSpec:
    """What an engine process is started with. `None` leaves a choice to the engine for the machine
    it finds.
    """

    kind: str  # of `ENGINES`
    base: str  # folder of the base model
    tokenizer: str  # folder of the tokenizer
    max_model_len: int
    max_lora_rank: int
    lora_modules: tuple[str, ...] | None = (
        None  # that adapters change; None is every one, the output layer too, which costs
    )
    max_loras: int = 1  # different adapters that one batch may mix; more of them take turns
    max_num_seqs: int | None = None
    dtype: str | None = None
    threads: int | None = None
    seed: int = 0
    draft_tokens: int | None = None  # drafted a step at most (see `drafts.py`); 0 drafts none
    tensor_parallel: int = 1  # devices that it spans, each with a part of every weight
    sharing: int = 1  # engines on its GPU, each with an equal part of its memory at most
    environment: tuple[tuple[str, str], ...] = ()  # variables of its process: which device it sees


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """What to serve: an adapter (or the bare base) under one contract. `name` is the bundle's digest."""

    name: str
    path: str | None  # None serves the base without an adapter
    # regular expression of exactly the legal answers; None decodes freely, for a diagnosis
    grammar: str | None
    stop_id: int
    max_tokens: int
    prefix_ids: tuple[int, ...]  # the prompt in front of the request, sent once and not with every row
    suffix_ids: tuple[int, ...]  # and behind it
    drafts: AnswerPath
    canary_ids: tuple[int, ...]  # a request on which the adapter and the grammar prove that they act
    canary_answer_ids: tuple[
        int, ...
    ]  # the tokens of `CANARY_ANSWER`: a vocabulary may have it as a byte as well
    samples: tuple[tuple[int, ...], ...] = ()  # legal answers' ids, from which the replay engine chooses
    # Answers end where a match of this does, but for those that are `Continued`.
    labels: str | None = None
    label_tokens: tuple[int, ...] = ()  # how many tokens of each sample hold its labels
    strict: bool = (
        True  # refuse an adapter or a grammar that does not act; False only reports what the canary showed
    )

    def prompt(self, request_ids: Sequence[int]) -> list[int]:
        return [*self.prefix_ids, *request_ids, *self.suffix_ids]


CANARY_ANSWER = "Z"  # matches no contract: no answer starts like this
CANARY_REQUEST = "A colleague asks for help with a task at work."
ADAPTER_MOVES = 1e-4  # least change of a log-probability (nats) on it that counts as the adapter acting


def adapter_spec(
    name: str, path: str | None, contract: Contract, renderer: Renderer, first: LabelsFirst | None = None
) -> AdapterSpec:
    """With `first`, answers end behind their labels."""
    samples = tuple(tuple(renderer.encode_answer(answer)[:-1]) for answer in contract.sample_answers())
    return AdapterSpec(
        name=name,
        path=path,
        grammar=contract.grammar,
        stop_id=renderer.end_of_turn_id,
        max_tokens=renderer.max_answer_tokens,
        prefix_ids=renderer.prefix_ids,
        suffix_ids=renderer.suffix_ids,
        drafts=answer_path(contract, renderer),
        canary_ids=tuple(renderer.encode_requests([CANARY_REQUEST])[0]),
        canary_answer_ids=tuple(i for i, text in renderer.vocabulary() if text == CANARY_ANSWER.encode()),
        samples=samples,
        labels=first.expression if first else None,
        label_tokens=tuple(_label_tokens(sample, renderer, first) for sample in samples) if first else (),
    )


def _label_tokens(sample: Sequence[int], renderer: Renderer, first: LabelsFirst) -> int:
    ends = itertools.accumulate(len(renderer.token_bytes(token)) for token in sample)
    size = len((first.labels(renderer.decode(sample)) + first.end).encode())
    return next(index for index, end in enumerate(ends, 1) if end >= size)


class Engine(Protocol):
    """Runs inside the engine process. Errors that concern the adapter are `AdapterError`, others end the
    process.
    """

    @staticmethod
    def at_once(spec: EngineSpec) -> int:
        """Requests that an engine of this spec will run at once, known before one is made."""

    @property
    def in_flight(self) -> int:
        """Requests added and not yet completed."""

    def facts(self) -> dict[str, Any]:
        """What serves: versions, device, dtype, threads, `max_num_seqs`, `draft_tokens`."""

    def load(self, adapter: AdapterSpec) -> dict[str, Any]:
        """Make an adapter servable and prove on the canary that it and the grammar act; returns what was
        seen.

        Raises `AdapterError` when either does not, unless the adapter's spec is not `strict`.
        """

    def add(self, adapter: str, key: int, request: Asked) -> None:
        """Queue one request for a loaded adapter."""

    def step(self) -> list[Completion]:
        """Advance every running request by one step; returns those that finished."""


def build(spec: EngineSpec) -> Engine:
    """The engine that `spec` asks for, in this process."""
    return kind_of(spec)(spec)  # type: ignore[no-any-return]


def kind_of(spec: EngineSpec) -> Any:
    """Its class, which implements :class:`Engine`."""
    module, _, name = ENGINES[spec.kind].partition(":")
    with uncollected():
        return getattr(importlib.import_module(module), name)
