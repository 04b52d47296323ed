"""In float32 on a CPU an answer and its log-probabilities have the same bits whatever else the engine computes."""

import random
from collections.abc import Iterator

import pytest

from batch.adapter.bundle import Bundle
from batch.engine import Completion
from batch.engine.process import EngineProcess
from batch.scoring.adapters import engine_spec, spec_of

REQUESTS = [
    f"Request {number}: {text}"
    for number, text in enumerate(
        (
            "Show open deals per trader.",
            "Please find our travel policy and, while you are at it, last year's, for a colleague abroad.",
            "Write the churn score back to Salesforce every night, " * 3 + "with an alert.",
            "Überblick über Lagerbestände",
            "Summarise each incident of the last week for the weekly review, with a table for each system.",
        )
        * 4
    )
]


@pytest.fixture(scope="module")
def engine(trained: Bundle) -> Iterator[EngineProcess]:
    with EngineProcess(engine_spec(trained.resolve_base(), [trained], dtype="float32")) as process:
        process.load(spec_of(trained))
        yield process


def answers(engine: EngineProcess, bundle: Bundle, groups: list[list[int]]) -> dict[int, Completion]:
    """Ask these requests, each group once the one before it is answered. `cached` may differ, so it is left out."""
    ids, done = bundle.renderer.encode_requests(REQUESTS), dict[int, Completion]()
    for group in groups:
        engine.submit(bundle.digest, [(key, ids[key]) for key in group])
        while not done.keys() >= set(group):
            done |= {completion.key: completion._replace(cached=0) for completion in engine.poll(60)}
    return done


def test_answers_do_not_depend_on_what_runs_beside_them(engine: EngineProcess, trained: Bundle) -> None:
    """Fails with attention that is split over threads, and with products of one row or few by other kernels."""
    keys = list(range(len(REQUESTS)))
    first = answers(engine, trained, [keys])  # prompts computed whole, as far as no other begins like them
    assert {completion.finish for completion in first.values()} == {"stop"}
    shuffled = random.Random(0).sample(keys, len(keys))
    for groups in (
        [keys],
        [keys[::-1]],
        [shuffled[start : start + 7] for start in range(0, len(keys), 7)],
        [[key] for key in keys[:5]],
    ):
        again = answers(engine, trained, groups)
        assert again == {key: first[key] for key in again}
