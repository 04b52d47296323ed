"""Places of vLLM that are set or read from outside, without starting an engine."""

import inspect
from types import SimpleNamespace

import pytest

from batch.engine import vllm_guide
from batch.engine.refusals import refusals
from batch.errors import AdapterError, EngineError


def engine(**manager: int) -> SimpleNamespace:
    core = SimpleNamespace(structured_output_manager=SimpleNamespace(**manager))
    return SimpleNamespace(engine_core=SimpleNamespace(engine_core=core))


def test_masks_are_never_shared_out_to_threads() -> None:
    from vllm.v1.structured_output import StructuredOutputManager

    assert "self.fill_bitmask_parallel_threshold" in inspect.getsource(StructuredOutputManager)
    made = engine(fill_bitmask_parallel_threshold=128)
    vllm_guide.fill_in_turn(made)
    manager = made.engine_core.engine_core.structured_output_manager
    assert manager.fill_bitmask_parallel_threshold > 65536  # of `--max-num-seqs`
    with pytest.raises(EngineError, match="not the pinned release; run `make setup`"):
        vllm_guide.fill_in_turn(engine())
    vllm_guide.fill_in_turn(SimpleNamespace(engine_core=object()))  # in a process of its own


def test_an_error_without_a_word_is_told_by_its_place() -> None:
    place = r"AssertionError: test_vllm_places\.py, line \d+: raise AssertionError$"
    with pytest.raises(AdapterError, match="vLLM cannot serve x: " + place), refusals("vLLM cannot serve x"):
        raise AssertionError
