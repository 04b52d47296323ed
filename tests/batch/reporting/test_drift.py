"""Population stability index: against published figures, its noise by simulation, and which run is compared with."""

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch.reporting.drift import by_chance, compare, earlier_run, level, psi
from batch.reporting.tally import SCORE_BINS, Tally
from tests.batch.storage.examples import FACTS, FILE, RUN, edited
from tests.batch.storage.examples import manifest as manifest_bytes


def test_psi_of_a_worked_example() -> None:
    """Shares .5/.5 → .6/.4: (.6 - .5) ln(.6/.5) + (.4 - .5) ln(.4/.5), in large numbers, where half a row is nothing."""
    expected = 0.1 * math.log(1.2) - 0.1 * math.log(0.8)
    assert psi([5e8, 5e8], [6e8, 4e8]) == pytest.approx(expected, rel=1e-6) == pytest.approx(0.0405, abs=1e-4)
    assert psi([3, 1], [3, 1]) == 0 == psi([], []) == psi([0, 0], [1, 2])
    assert psi([100, 0], [50, 50]) < math.inf


def test_levels() -> None:
    assert [level(value) for value in (0.0, 0.0999, 0.10, 0.2499, 0.25)] == [
        "ok",
        "ok",
        "warn",
        "warn",
        "alarm",
    ]


@pytest.mark.parametrize(("bins", "before", "now"), [(2, 5000, 500), (5, 500, 500), (10, 20_000, 1000)])
def test_by_chance_is_exceeded_in_one_case_of_twenty(bins: int, before: int, now: int) -> None:
    generator = np.random.default_rng(7)
    shares = np.full(bins, 1 / bins)
    values = [
        psi(list(generator.multinomial(before, shares)), list(generator.multinomial(now, shares)))
        for _ in range(2000)
    ]
    assert 0.03 < np.mean(np.array(values) > by_chance(bins, before, now)) < 0.07


def tally(labels: dict[str, int], scores: dict[str, int]) -> Tally:
    return Tally(
        rows=sum(labels.values()), values={"tier": Counter(labels)}, scores={"tier_score": Counter(scores)}
    )


def found(before: Tally, now: Tally) -> dict[str, dict[str, Any]]:
    drift = compare({"output": "o", "sha256": "s", "tally": before.as_json()}, now)
    assert drift
    return {measure["of"]: measure for measure in drift["measures"]}


def test_label_mix_and_score_deciles() -> None:
    even = dict.fromkeys(SCORE_BINS, 10)
    same = found(tally({"a": 500, "b": 500}, even), tally({"a": 500, "b": 500}, even))
    assert same["labels"]["psi"] == same["score deciles"]["psi"] == 0
    upper = dict.fromkeys(SCORE_BINS[50:], 20)  # all scores in the upper five deciles
    moved = found(tally({"a": 500, "b": 500}, even), tally({"a": 900, "b": 100}, upper))
    assert moved["labels"]["level"] == "alarm" == moved["score deciles"]["level"]
    # Five of ten bins empty: half a row in each of them is a share of 0.5/1005.
    e, a, full = 100.5 / 1005, 0.5 / 1005, 200.5 / 1005
    assert moved["score deciles"]["psi"] == pytest.approx(
        5 * ((a - e) * math.log(a / e) + (full - e) * math.log(full / e))
    )
    assert moved["score deciles"]["by_chance"] == by_chance(10, 1000, 1000)


def test_scores_that_are_all_alike_are_one_bin() -> None:
    one = found(tally({"a": 9}, {"0.99": 9}), tally({"a": 5}, {"0.50": 5}))
    assert one["score deciles"]["psi"] == 0 == one["score deciles"]["by_chance"]


def test_a_label_that_is_new_or_gone_counts() -> None:
    assert found(tally({"a": 100}, {}), tally({"a": 50, "b": 50}, {}))["labels"]["level"] == "alarm"
    assert found(tally({"a": 50, "b": 50}, {}), tally({"a": 100}, {}))["labels"]["level"] == "alarm"


def manifest(
    path: Path, contract: str, engine: str = "vllm", rows: int = 3, **more: object
) -> dict[str, object]:
    job = {**FACTS, "contract": contract, "engine": engine, "rows": rows}
    run = {**RUN, "tally": tally({"a": rows}, {}).as_json()}
    output = {**FILE, "columns": [], "sha256": path.name}
    made = manifest_bytes(**{"job": job, "output": output, "run": run, **more})  # type: ignore[arg-type]
    path.with_name(path.name + ".manifest.json").write_bytes(made)
    return job


def test_the_run_that_is_compared_with(tmp_path: Path) -> None:
    output = tmp_path / "tonight.parquet"
    job = {**FACTS, "contract": "c", "engine": "vllm", "rows": 5}
    assert earlier_run(str(output), job) is None
    manifest(tmp_path / "other-contract.parquet", "d")
    manifest(tmp_path / "made-up.parquet", "c", engine="replay")
    for index, content in enumerate(("[]", "[" * 200_000, '{"job": {"contract": "c"}, "output": 5}')):
        (tmp_path / f"broken{index}.parquet.manifest.json").write_text(content)
    for index, wrong in enumerate(({"rows": "many"}, {"values": [1]}, {"errors": {"x": "y"}}, 5)):
        told = {**tally({"a": 1}, {}).as_json(), **wrong} if isinstance(wrong, dict) else wrong
        manifest(tmp_path / f"wrong{index}.parquet", "c", run={**RUN, "tally": told})
    manifest(tmp_path / "edited.parquet", "c")
    edited(tmp_path / "edited.parquet.manifest.json", "run", "tally", "rows", value=4)
    (tmp_path / "folder.parquet.manifest.json").mkdir()
    assert earlier_run(str(output), job) is None
    manifest(tmp_path / "last-night.parquet", "c")
    assert earlier_run(str(output), job)["output"] == "last-night.parquet"  # type: ignore[index]
    manifest(output, "old contract")
    assert earlier_run(str(output), job)["output"] == "tonight.parquet"  # type: ignore[index]
    # The same job done anew is compared with what it was compared with before, not with itself.
    before = {"output": "the night before", "sha256": "", "tally": tally({"a": 1}, {}).as_json()}
    redone = manifest(output, "c", rows=5, drift={"previous": before, "measures": []})
    assert earlier_run(str(output), redone) == before
    redone = manifest(output, "c", rows=5, drift=None)
    assert earlier_run(str(output), redone) is None


def test_what_lies_beside_the_output_never_costs_the_run(tmp_path: Path) -> None:
    """Neither a link to itself nor one to nothing, nor a pipe, which nobody writes to."""
    job = manifest(tmp_path / "last-night.parquet", "c")
    (tmp_path / "loop.manifest.json").symlink_to("loop.manifest.json")
    (tmp_path / "gone.manifest.json").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.manifest.json")
    found = earlier_run(str(tmp_path / "tonight.parquet"), job)
    assert found and found["output"] == "last-night.parquet"
