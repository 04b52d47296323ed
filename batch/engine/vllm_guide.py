"""Guides in vLLM's structured output, in the place of xgrammar's matchers."""

import dataclasses
import functools
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from vllm.v1 import structured_output
from vllm.v1.structured_output import backend_xgrammar
from vllm.v1.structured_output.backend_types import (
    StructuredOutputBackend,
    StructuredOutputGrammar,
    StructuredOutputOptions,
)

from batch.adapter.vocabulary import Vocabulary
from batch.engine.automaton import DEAD, Automaton
from batch.engine.guide import ENDED, Guide, TokenTree
from batch.engine.patches import patch
from batch.errors import EngineError

EXPRESSIONS = 64  # that are kept; an engine's adapters rarely have more contracts
automaton_of = functools.lru_cache(EXPRESSIONS)(Automaton)


END = "\x1f"  # between an expression and that of the beginning behind which an answer ends; in neither


def specification(grammar: str, beginning: str | None) -> str:
    """Both expressions as vLLM passes on one."""
    return grammar if beginning is None else f"{grammar}{END}{beginning}"


def install() -> None:
    """Have vLLM decode by guides. What it would check of each request, `automaton_of` checks at load."""
    patch(structured_output, "XgrammarBackend", GuideBackend, made_for="0.32")
    patch(backend_xgrammar, "validate_xgrammar_grammar", lambda params: None, made_for="0.32")


def fill_in_turn(engine: Any) -> None:
    """Have the masks of a step filled by the thread that waits for them, where that is one of this process.

    vLLM shares more than 128 out to threads, for matchers that work without Python's lock. Copying a kept
    mask takes a few microseconds with it, so threads only wait for one another.
    """
    core = getattr(engine.engine_core, "engine_core", None)
    if core is not None:
        manager = core.structured_output_manager
        if not hasattr(manager, "fill_bitmask_parallel_threshold"):
            raise EngineError("vLLM is not the pinned release; run `make setup`, which installs it")
        manager.fill_bitmask_parallel_threshold = sys.maxsize


@dataclasses.dataclass
class GuideBackend(StructuredOutputBackend):
    def __post_init__(self) -> None:
        folder = Path(self.vllm_config.model_config.tokenizer)
        self._tree = TokenTree(Vocabulary.read(folder).table, self.vocab_size)
        self._guide_of = functools.lru_cache(EXPRESSIONS)(self._guide)
        self._lock = threading.Lock()  # vLLM asks from threads of its own

    def compile_grammar(
        self,
        request_type: StructuredOutputOptions,
        grammar_spec: str,
        stop_token_ids: set[int] | None = None,
    ) -> "GuidedAnswer":
        if request_type != StructuredOutputOptions.REGEX:
            raise ValueError(f"guides are for regular expressions, not {request_type}")
        with self._lock:
            return GuidedAnswer(self._guide_of(grammar_spec, frozenset(stop_token_ids or ())))

    def _guide(self, grammar_spec: str, stop_ids: frozenset[int]) -> Guide:
        grammar, _, beginning = grammar_spec.partition(END)
        whole = automaton_of(grammar)
        ends = whole.behind(automaton_of(beginning)) if beginning else frozenset()
        return Guide(whole, self._tree, stop_ids, ends)

    def allocate_token_bitmask(self, max_num_seqs: int) -> torch.Tensor:
        return torch.full((max_num_seqs, self._tree.words), -1, dtype=torch.int32)

    def destroy(self) -> None:
        """Nothing outlives the process."""


class GuidedAnswer(StructuredOutputGrammar):
    """Where one request's answer has got to."""

    def __init__(self, guide: Guide) -> None:
        self._guide = guide
        self._states = [0]  # in front of each token, and behind the last

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """Go on by these tokens, as far as the end of the answer; whether all were legal."""
        for token in tokens:
            if self.is_terminated():
                break
            state = self._guide.step(self._states[-1], token)
            if state == DEAD:
                return False
            self._states.append(state)
        return True

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        """The legal beginning of `tokens`."""
        state = self._states[-1]
        for count, token in enumerate(tokens):
            state = self._guide.step(state, token)
            if state == DEAD:
                return tokens[:count]
        return tokens

    def rollback(self, num_tokens: int) -> None:
        if num_tokens:
            del self._states[-num_tokens:]

    def fill_bitmask(self, bitmask: torch.Tensor, batch_index: int) -> None:
        self._guide.fill(self._states[-1], bitmask.numpy()[batch_index])

    def is_terminated(self) -> bool:
        return self._states[-1] == ENDED

    def reset(self) -> None:
        del self._states[1:]
