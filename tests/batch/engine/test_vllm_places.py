"""Places of vLLM that are set or read from outside, without starting an engine."""

import inspect
from types import SimpleNamespace

import pytest
from vllm.config import CompilationConfig

from batch.engine import refusals as engine_errors
from batch.engine import vllm_guide
from batch.engine.parts import compiled
from batch.engine.refusals import cause_in, refusals
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


IN_A_PART = "WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause."
PREFIX = "(Worker_TP1 pid=7) ERROR 11-27 21:20:32 [multiproc_executor.py:941]"
OF_TWO_PARTS = [
    "WARNING 11-27 21:20:01 [fallback.py:3] ImportError: no faster kernel",
    f"{PREFIX} WorkerProc failed to start.",
    f"{PREFIX} Traceback (most recent call last):",
    f'{PREFIX}   File "gpu_worker.py", line 1, in load_model',
    f"{PREFIX} torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    f"{PREFIX} WorkerProc failed to start.",
    f"{PREFIX} RuntimeError: Connection closed by peer",
    "resource_tracker: There appear to be 1 leaked shared_memory objects",
]


def test_a_part_of_an_engine_that_fails_is_told_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM says no more than that it failed, which was told as a base that a rerun would refuse again."""
    monkeypatch.setattr(engine_errors, "log_lines", lambda descriptor: OF_TWO_PARTS)
    cause = r"Its log: torch\.OutOfMemoryError: CUDA out of memory\. Tried to allocate 2\.00 GiB\.$"
    with pytest.raises(EngineError, match=cause) as failed, refusals("vLLM cannot serve x"):
        raise Exception(IN_A_PART)
    assert failed.value.exit_code == 75


@pytest.mark.parametrize("said", ["Executor failed.", "NCCL error: unhandled system error"])
def test_what_the_machine_does_to_an_engine_that_spans_devices_may_pass(said: str) -> None:
    with (
        pytest.raises(EngineError, match=f"vLLM cannot serve x: RuntimeError: {said}"),
        refusals("vLLM cannot serve x"),
    ):
        raise RuntimeError(said)


def test_a_part_that_died_without_a_word_is_told_by_the_logs_last_lines() -> None:
    assert cause_in(["loading", "one", "two", "Bus error"]) == "one / two / Bus error"
    assert cause_in([]) == ""


def test_how_a_step_is_run_is_asked_of_the_part_that_runs_it() -> None:
    made = CompilationConfig(cudagraph_mode="FULL_DECODE_ONLY", mode=0)
    part = SimpleNamespace(vllm_config=SimpleNamespace(compilation_config=made))
    assert compiled(part) == {"cudagraph_mode": "FULL_DECODE_ONLY", "compilation_mode": "NONE"}
