"""Several adapters, with contracts of their own, in one warm engine: real vLLM, fewer slots than adapters."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.adapter.bundle import Bundle
from batch.contract.contract import Contract
from batch.engine import EngineSpec
from batch.engine.process import EngineProcess
from batch.scoring.adapters import lane_of, spec_of
from batch.scoring.lane import ScoredRow
from batch.scoring.router import Requests, Router
from tests.conftest import ROOT, make_bundle

REQUESTS = [f"Please build a dashboard of sales for region {i}." for i in range(6)]


@pytest.fixture(scope="module")
def bundles(
    tiny_base: Path, tiny_bundle: Bundle, contract: Contract, tmp_path_factory: pytest.TempPathFactory
) -> list[Bundle]:
    triage = Contract.load(ROOT / "tests/data/triage/contract.toml")
    folder = tmp_path_factory.mktemp("many")
    return [
        tiny_bundle,
        make_bundle(tiny_base, contract, folder, scale=0.2),
        make_bundle(tiny_base, triage, folder, scale=0.1),
    ]


@pytest.fixture(scope="module")
def engine(tiny_base: Path, bundles: list[Bundle]) -> Iterator[EngineProcess]:
    longest = max(bundle.renderer.max_model_len for bundle in bundles)
    modules = bundles[0].lora_modules
    assert modules and len(modules) == 7
    spec = EngineSpec(
        "vllm",
        str(tiny_base),
        str(tiny_base),
        longest,
        4,
        modules,
        max_loras=2,
        max_num_seqs=8,
        dtype="float32",
    )
    with EngineProcess(spec) as process:
        yield process


def test_mixed_rows_get_what_each_adapter_gives_alone(engine: EngineProcess, bundles: list[Bundle]) -> None:
    """Three adapters in two slots: loaded as rows need them, while others run, evicted and taken back; order is kept."""
    pid = engine.pid
    alone: list[list[ScoredRow]] = []
    for bundle in bundles:
        engine.load(spec_of(bundle))
        alone += Router(engine, 64).route([Requests.to(lane_of(bundle), REQUESTS)])
    lanes = [lane_of(bundle) for bundle in bundles]
    mixed = Router(engine, 64)
    batches = [Requests([text] * 3, lanes) for text in REQUESTS]
    for number, rows in enumerate(mixed.route(batches)):
        for bundle, row, expected in zip(bundles, rows, (answers[number] for answers in alone), strict=True):
            assert row.answer == expected.answer and set(row.answer or ()) == {
                field.name for field in bundle.contract.fields
            }
            assert row.scores == pytest.approx(expected.scores, abs=1e-3)
    # the same text under another adapter is another request
    assert mixed.counts.inferred == 18 and mixed.counts.deduplicated == 0
    assert engine.pid == pid


def test_a_bad_adapter_is_its_rows_error(
    engine: EngineProcess, bundles: list[Bundle], tiny_base: Path, contract: Contract, tmp_path: Path
) -> None:
    """One that is not there, and one that loads and does nothing, asked for while the engine is at work."""
    idle = lane_of(make_bundle(tiny_base, contract, tmp_path, scale=0.0))
    good = lane_of(bundles[1])
    engine.load(spec_of(bundles[0]))
    batches = [Requests([f"{i} a", f"{i} b", f"{i} c", None], [good, None, idle, good]) for i in range(5)]
    rows = [row.error_code for batch in Router(engine, window=2).route(batches) for row in batch]
    assert rows == [None, "unknown_adapter", "unknown_adapter", "null_text"] * 5
