"""The real vLLM engine in its own process, on a tiny random base: adapters, grammar, log-probabilities, death."""

import dataclasses
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from batch.adapter.bundle import Bundle
from batch.contract.contract import Contract
from batch.engine import AdapterSpec, Completion, EngineSpec, adapter_spec
from batch.engine.process import EngineProcess
from batch.errors import AdapterError, EngineError, InvalidAnswer
from batch.scoring.adapters import lane_of, spec_of
from batch.scoring.router import Requests, Router
from tests.conftest import make_bundle

REQUESTS = [
    "Please build a dashboard of sales.",
    "Find our travel policy.",
    "<|im_end|>{}",
    "Bitte ein Überblick über Lagerbestände.",
]


@pytest.fixture(scope="module")
def engine(tiny_base: Path, contract: Contract, tiny_bundle: Bundle) -> Iterator[EngineProcess]:
    spec = EngineSpec(
        "vllm",
        str(tiny_base),
        str(tiny_base),
        tiny_bundle.renderer.max_model_len,
        max_lora_rank=4,
        max_num_seqs=8,
    )
    with EngineProcess(spec) as process:
        yield process


def complete(
    engine: EngineProcess, adapter: AdapterSpec, bundle: Bundle, requests: list[str]
) -> dict[int, Completion]:
    engine.submit(adapter.name, list(enumerate(bundle.renderer.encode_requests(requests))))
    done: dict[int, Completion] = {}
    while len(done) < len(requests):
        done.update({completion.key: completion for completion in engine.poll(60)})
    return done


def test_answers_are_legal_and_probabilities_are_after_the_grammar(
    engine: EngineProcess, tiny_bundle: Bundle
) -> None:
    """Random weights answer legally: whatever the grammar forces has probability 1, and no score leaves (0, 1]."""
    adapter = spec_of(tiny_bundle)
    seen = engine.load(adapter)
    assert seen["adapter_moves_logprob_by"] > 1e-4 and seen["grammar_holds"] is True
    assert engine.facts["vllm"].startswith("0.32")
    assert engine.facts["cudagraph_mode"] == engine.facts["compilation_mode"] == "NONE"  # a CPU's
    assert seen["patches_idle"] == []
    assert {name.rpartition(".")[2] for name in engine.facts["patches"]} == {
        "XgrammarBackend", "validate_xgrammar_grammar", "PunicaWrapperCPU", "cpu_unquantized_gemm", "apply_grammar_bitmask", "Sampler", "RejectionSampler", "LogitsProcessor",
    }  # fmt: skip
    assert not any("made for" in release for release in engine.facts["patches"].values())
    for completion in complete(engine, adapter, tiny_bundle, REQUESTS).values():
        assert completion.finish == "stop" and len(completion.token_ids) == len(completion.logprobs)
        answer, spans = tiny_bundle.contract.parse(tiny_bundle.renderer.decode(completion.token_ids))
        assert set(spans) == {"tier", "risk", "recommended_platform", "needs_review"}
        assert max(completion.logprobs) <= 1e-6 and all(map(math.isfinite, completion.logprobs))
        text = tiny_bundle.renderer.decode(completion.token_ids)
        if answer["tier"] != "Trusted Functional Builder":
            # between the two technical tiers: everything up to the last word
            forced = text.index("Technical")
            assert text[forced - len("Trusted ") : forced] == "Trusted "


def test_the_same_request_gets_the_same_answer(engine: EngineProcess, tiny_bundle: Bundle) -> None:
    adapter = spec_of(tiny_bundle)
    first, second = (complete(engine, adapter, tiny_bundle, REQUESTS) for _ in range(2))
    assert {k: list(c.token_ids) for k, c in first.items()} == {
        k: list(c.token_ids) for k, c in second.items()
    }
    assert all(
        completion.cached > len(tiny_bundle.renderer.prefix_ids) // 2 for completion in second.values()
    )


def test_an_adapter_is_hot_loaded_beside_another_and_the_base(
    engine: EngineProcess, tiny_bundle: Bundle, tiny_base: Path, contract: Contract, tmp_path: Path
) -> None:
    """Three servings of one process, whose answers differ and do not disturb each other."""
    pid, one = engine.pid, spec_of(tiny_bundle)
    before = complete(engine, one, tiny_bundle, REQUESTS)
    other = make_bundle(tiny_base, contract, tmp_path, scale=0.2)
    two, bare = spec_of(other), adapter_spec("base", None, contract, other.renderer)
    engine.load(two)
    engine.load(bare)
    assert engine.pid == pid
    answers = [
        {k: list(c.token_ids) for k, c in complete(engine, s, tiny_bundle, REQUESTS).items()}
        for s in (one, two, bare)
    ]
    assert answers[0] == {k: list(c.token_ids) for k, c in before.items()}
    assert answers[0] != answers[1] != answers[2] != answers[0]


def test_an_adapter_that_does_nothing_is_refused(
    engine: EngineProcess, tiny_base: Path, contract: Contract, tmp_path: Path
) -> None:
    """B = 0 loads without an error and changes nothing: the canary must see it. The engine goes on."""
    idle = make_bundle(tiny_base, contract, tmp_path, scale=0.0)
    with pytest.raises(AdapterError, match="changes nothing"):
        engine.load(spec_of(idle))
    # not served with the refused one's weights
    following = make_bundle(tiny_base, contract, tmp_path, scale=0.1)
    assert engine.load(spec_of(following))["adapter_moves_logprob_by"] > 1e-4


def rewritten(bundle: Bundle, folder: Path, targets: object, prefix: str = "") -> AdapterSpec:
    """The same adapter with other target modules, and another name in front of each of its own."""
    shutil.copytree(bundle.path, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))
    weights = load_file(folder / "adapter_model.safetensors")
    start = "base_model.model."
    save_file(
        {start + prefix + name.removeprefix(start): weight for name, weight in weights.items()},
        folder / "adapter_model.safetensors",
    )
    return dataclasses.replace(spec_of(bundle), name=folder.name, path=str(folder))


def test_an_adapter_is_served_whole_however_its_targets_are_written(
    engine: EngineProcess, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """As LLaMA-Factory and Unsloth write them: vLLM's filter goes by the last name, so paths left layers out."""
    leaf = spec_of(tiny_bundle)
    engine.load(leaf)
    wanted = complete(engine, leaf, tiny_bundle, REQUESTS)
    paths = sorted(module.name for module in tiny_bundle.modules)
    for name, targets in (("paths", paths), ("pattern", r".*\.layers\..*_proj"), ("all", "all-linear")):
        spec = rewritten(tiny_bundle, tmp_path / name, targets)
        engine.load(spec)
        found = complete(engine, spec, tiny_bundle, REQUESTS)
        for key, one in wanted.items():  # up to the free text, which rounding may turn at random weights
            assert list(found[key].token_ids[:20]) == list(one.token_ids[:20])
            assert found[key].logprobs[:20] == pytest.approx(one.logprobs[:20], abs=1e-4)


def test_an_adapter_that_would_be_served_in_part_is_refused(
    engine: EngineProcess, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    other = rewritten(tiny_bundle, tmp_path / "other", "all-linear", prefix="model.")
    with pytest.raises(AdapterError, match="vLLM serves 0 of the 14 layers"):
        engine.load(other)
    engine.load(spec_of(tiny_bundle))


def test_an_adapter_that_overflows_is_refused_and_its_neighbour_served(
    engine: EngineProcess, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    spec = rewritten(tiny_bundle, tmp_path / "large", "all-linear")
    weights = load_file(tmp_path / "large/adapter_model.safetensors")
    # finite, and within what the linter lets through: the second layer overflows on what the first makes
    save_file(
        {name: weight * 1e13 for name, weight in weights.items()},
        tmp_path / "large/adapter_model.safetensors",
    )
    with pytest.raises(AdapterError, match="overflows: a log-probability of the canary is not a number"):
        engine.load(spec)
    adapter = spec_of(tiny_bundle)
    engine.load(adapter)
    assert all(c.finish == "stop" for c in complete(engine, adapter, tiny_bundle, REQUESTS).values())


def test_arms_for_a_diagnosis(engine: EngineProcess, tiny_bundle: Bundle) -> None:
    """Without a grammar random weights babble; behind a `{` in the prompt too. Not strict, an idle adapter is reported."""
    served = spec_of(tiny_bundle)
    assert engine.load(served)["decoding"] == {
        "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "max_tokens": served.max_tokens, "stop_token_ids": [served.stop_id],
    }  # fmt: skip
    free = dataclasses.replace(served, name="free", grammar=None)
    assert "grammar_holds" not in engine.load(free)
    brace = next(i for i in range(1024) if tiny_bundle.renderer.token_bytes(i) == b"{")
    prefill = dataclasses.replace(free, name="prefill", suffix_ids=(*free.suffix_ids, brace))
    engine.load(prefill)
    answers = [complete(engine, spec, tiny_bundle, REQUESTS)[0] for spec in (served, free, prefill)]
    assert len({tuple(answer.token_ids) for answer in answers}) == 3
    with pytest.raises((InvalidAnswer, UnicodeDecodeError)):
        tiny_bundle.contract.parse(tiny_bundle.renderer.decode(answers[1].token_ids))


def test_what_does_nothing_can_be_looked_at(
    engine: EngineProcess, tiny_base: Path, contract: Contract, tmp_path: Path
) -> None:
    idle = dataclasses.replace(spec_of(make_bundle(tiny_base, contract, tmp_path, scale=0.0)), strict=False)
    seen = engine.load(idle)
    assert seen["adapter_moves_logprob_by"] < 1e-4 and seen["grammar_holds"] is True


def test_router_keeps_order_and_isolates_bad_rows(engine: EngineProcess, tiny_bundle: Bundle) -> None:
    router, lane = Router(engine, window=3), lane_of(tiny_bundle)
    batches: list[list[str | None]] = [[REQUESTS[0], None, REQUESTS[1]], [""], [], [*REQUESTS[2:4]]]
    rows = list(router.route(Requests.to(lane, batch) for batch in batches))
    assert [[row.error_code for row in batch] for batch in rows] == [
        [None, "null_text", None],
        ["empty_text"],
        [],
        [None, None],
    ]
    assert router.counts.rows == 6 and router.counts.errors == 2 and router.counts.inferred == 4
    assert router.counts.cache_hit_rate > 0.5
    for row in (row for batch in rows for row in batch if row.scores):
        assert all(0 < score <= 1 for score in row.scores.values())  # type: ignore[union-attr]


def test_a_dead_engine_is_one_clear_error(tiny_bundle: Bundle, tiny_base: Path) -> None:
    """Killed while it works: `EngineError` (exit 75), not a hang and not a traceback."""
    with EngineProcess(EngineSpec("replay", str(tiny_base), str(tiny_base), 1000, 4)) as process:
        process.load(spec_of(tiny_bundle))
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="SIGKILL") as died:
            process.poll(10)
        assert died.value.exit_code == 75


def test_a_base_that_vllm_cannot_serve_is_one_clear_error(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Nonsense"], "model_type": "nonsense"}')
    with (
        EngineProcess(EngineSpec("vllm", str(tmp_path), str(tmp_path), 1000, 4)) as process,
        pytest.raises(AdapterError, match="vLLM cannot serve") as refused,
    ):
        process.load(spec_of(tiny_bundle))
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)
