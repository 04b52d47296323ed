"""`--reasons`: free text for all rows, for those that a person reads, or for none; everything else is the same."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.adapter.bundle import Bundle
from batch.adapter.calibration import Calibration
from batch.contract.contract import Contract
from batch.engine import Completion, Continued, EngineSpec
from batch.engine.supervisor import Supervisor
from batch.job import Options
from batch.run import run
from batch.scoring.adapters import engine_spec, lane_of, spec_of
from batch.scoring.lane import ScoredRow
from batch.scoring.router import Requests, Router
from tests.conftest import ROOT, make_bundle

TEXTS = [
    f"Request {i}: {text}"
    for i, text in enumerate(
        ("a dashboard of sales", "find our travel policy", "Überblick", "<|im_end|>{}") * 3
    )
]


def routed(engine: Supervisor, bundle: Bundle, reasons: str, texts: list[Any] = TEXTS) -> list[ScoredRow]:
    engine.load(spec_of(bundle, reasons))
    (rows,) = Router(engine, window=5).route([Requests.to(lane_of(bundle, reasons), texts)])
    return rows


def without_texts(rows: list[ScoredRow], contract: Contract) -> list[ScoredRow]:
    names = [field.name for field in contract.scored_fields]
    return [row._replace(answer=row.answer and {name: row.answer[name] for name in names}) for row in rows]


def with_threshold(bundle: Bundle, rows: list[ScoredRow]) -> Bundle:
    """The bundle without rules, by whose calibration about half of these rows need a person."""
    scores = sorted(math.prod((row.scores or {}).values()) for row in rows)
    raw = {key: value for key, value in bundle.contract.raw.items() if key != "rules"}
    calibration = Calibration({}, scores[len(scores) // 2])
    return dataclasses.replace(bundle, contract=Contract.from_dict(raw), calibration=calibration)


@pytest.fixture(scope="module")
def served(tiny_bundle: Bundle) -> Any:
    spec = engine_spec(tiny_bundle.resolve_base(), [tiny_bundle], max_num_seqs=8, dtype="float32")
    with Supervisor(spec) as engine:
        yield engine


def test_labels_and_scores_are_the_same_whether_texts_are_written_or_not(
    served: Supervisor, tiny_bundle: Bundle
) -> None:
    """On vLLM in float32; and a text that was asked for behind the labels makes a legal answer with them."""
    whole = routed(served, tiny_bundle, "all")
    assert not any(row.error_code for row in whole)
    none = routed(served, tiny_bundle, "none")
    assert all(row.answer and row.answer["reason"] is None for row in none)
    bundle = with_threshold(tiny_bundle, whole)
    human = routed(served, bundle, "human")
    for rows in (none, human):
        for one, other in zip(
            without_texts(rows, tiny_bundle.contract), without_texts(whole, tiny_bundle.contract), strict=True
        ):
            assert (one.answer, one.scores) == (other.answer, other.scores)  # bit for bit
    read = [row.answer for row in human if row.answer and row.answer["reason"] is not None]
    assert 0 < len(read) < len(whole)
    assert all(tiny_bundle.contract.serialise(answer) for answer in read)  # raises where one is not legal


def test_in_a_run_only_the_texts_differ(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """On the replay engine, whose token cuts fall anywhere; each mode is a job of its own."""
    source = tmp_path / "in.parquet"
    pq.write_table(
        pa.table({"id": range(90), "request": [TEXTS[i % 9] if i % 7 else None for i in range(90)]}), source
    )
    tables = {}
    for reasons in ("all", "human", "none"):
        output = tmp_path / f"{reasons}.parquet"
        run(
            Options(str(source), str(output), adapter=str(tiny_bundle.path), engine="replay", reasons=reasons)
        )
        tables[reasons] = pq.read_table(output)
        manifest = json.loads(Path(f"{output}.manifest.json").read_text())
        assert manifest["job"]["reasons"] == reasons
    for table in tables.values():
        assert table.drop(["reason"]).equals(tables["all"].drop(["reason"]))
    assert tables["none"]["reason"].null_count == 90
    assert tables["human"].equals(tables["all"])  # without a threshold a person reads every row


@pytest.mark.parametrize("name", ["data/contract.toml", "tests/data/triage/contract.toml"])
def test_an_engine_that_fails_at_the_text_costs_its_row_alone(
    name: str, tiny_base: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(tiny_base, Contract.load(ROOT / name), tmp_path)
    lane = lane_of(bundle, "human")
    spec = spec_of(bundle, "human")
    sample, labels = spec.samples[0], spec.label_tokens[0]
    done = Completion(0, sample[:labels], [-0.01] * labels, "stop")
    row = lane.score(done, "text")
    asked = lane.texts_of(row, done, [1, 2, 3])
    assert isinstance(asked, Continued) and tuple(asked.answer_ids) == sample[: len(asked.answer_ids)]
    rest = Completion(1, sample[len(asked.answer_ids) :], [0.0] * 99, "stop")
    whole = lane_of(bundle).score(Completion(0, sample, [-0.01] * len(sample), "stop"), "text")
    assert lane.with_texts(row, asked, rest) == whole
    for finish, code in (("length", "truncated"), ("error", "engine_failure")):
        assert lane.with_texts(row, asked, rest._replace(finish=finish)).error_code == code  # type: ignore[arg-type]
    assert (
        lane.with_texts(row, asked, rest._replace(token_ids=rest.token_ids[:-1])).error_code
        == "invalid_output"
    )


def test_equal_texts_are_asked_once_and_wait_for_one_text(tiny_bundle: Bundle) -> None:
    with Supervisor(EngineSpec("replay", "", "", 1000, 4, max_num_seqs=2)) as engine:
        rows = routed(engine, tiny_bundle, "human", [TEXTS[0], None, TEXTS[1], TEXTS[0], TEXTS[0]])
        assert [row.error_code for row in rows] == [None, "null_text", None, None, None]
        assert rows[0] == rows[3] == rows[4] and rows[0].answer and rows[0].answer["reason"]
