"""What `batch-train calibrate` refuses, it refuses before anything is written."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batch.adapter.bundle import Bundle, seal_bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import DatasetError, InputError
from batch.scoring.lane import ScoredRow
from tests.conftest import ROOT, make_bundle
from train.cli import main
from train.dataset import Row, file_facts, load_rows
from train.fit.calibrated import calibrate_bundle, check_unseen

TRAIN = ROOT / "data/v2/train.jsonl"


@pytest.fixture
def registry(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Its champion was trained on v2, as its manifest says."""
    registry = Registry(tmp_path / "adapters")
    plain = make_bundle(tiny_bundle.resolve_base(), tiny_bundle.contract, tmp_path / "plain")
    staging = registry.staging()
    shutil.copytree(plain.path, staging, dirs_exist_ok=True)
    rows = load_rows(TRAIN, plain.contract)
    facts = {key: value for key, value in plain.manifest.items() if key != "files"}
    seal_bundle(staging, {**facts, "data": {"train": file_facts(TRAIN, str(TRAIN), rows)}})
    registry.set_alias("champion", registry.add(staging).digest)
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(registry.root))
    return registry


@pytest.fixture
def others(tmp_path: Path) -> list[str]:
    """Lines of 280 labelled requests that it was not trained on."""
    lines = [
        json.loads(line)
        for name in ("natural", "probes")
        for line in (ROOT / f"data/{name}.jsonl").read_text().splitlines()
    ]
    return [json.dumps({**line, "id": str(number)}) for number, line in enumerate(lines)]


def calibrate(path: Path, lines: Sequence[str]) -> Result:
    path.write_text("".join(f"{line}\n" for line in lines))
    return CliRunner().invoke(main, ["calibrate", "champion", str(path)])


def files(root: Path) -> dict[Path, int | None]:
    """When each was changed; of folders only which there are, as it is tried whether they can be written."""
    return {path: path.stat().st_mtime_ns if path.is_file() else None for path in root.rglob("*")}


def never(*arguments: object) -> list[ScoredRow]:
    raise AssertionError("an engine was asked")


def test_too_few_rows_are_refused(
    registry: Registry, others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.fit.calibrated.answers", never)
    before = files(registry.root)
    result = calibrate(tmp_path / "rows.jsonl", others[:191])
    assert result.exit_code == 2 and result.output == (
        f"Error: {tmp_path}/rows.jsonl: 191 labelled rows are too few to calibrate on, 200 are needed; label more\n"
    )
    assert files(registry.root) == before


def test_a_registry_that_cannot_be_written_is_refused_before_the_engine_is_asked(
    registry: Registry, others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.fit.calibrated.answers", never)
    path, bundle = tmp_path / "rows.jsonl", registry.open("champion")
    path.write_text("".join(f"{line}\n" for line in others))
    with pytest.raises(
        InputError, match=r"cannot write into the registry /proc/adapters/: .*BATCH_ROUTE_ADAPTERS"
    ):
        calibrate_bundle(bundle, path, 0.02, Registry("/proc/adapters"), lambda _: None)


def test_rows_that_were_trained_on_are_refused(
    registry: Registry, others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few of them, under other ids and in another case."""
    monkeypatch.setattr("train.fit.calibrated.answers", never)
    before = files(registry.root)
    trained = [json.loads(line) for line in TRAIN.read_text().splitlines()][:3]
    copies = [
        json.dumps({**row, "id": f"c{i}", "request": row["request"].upper()}) for i, row in enumerate(trained)
    ]
    result = calibrate(tmp_path / "rows.jsonl", [*others, *copies])
    digest = registry.aliases()["champion"][:12]
    assert result.exit_code == 2 and result.output == (
        f"Error: 3 of 283 requests are those that adapter {digest} was trained on, or nearly, the first at "
        f"{tmp_path}/rows.jsonl:281; calibrate on others\n"
    )
    assert files(registry.root) == before


def test_a_training_file_that_was_moved_is_known_by_its_digest(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.evaluation.seen.split_path", _gone)
    bundle = registry.open("champion")
    rows = load_rows(TRAIN, bundle.contract)
    with pytest.raises(DatasetError, match=r"167 of 167 requests .*the first at .*train\.jsonl:1;"):
        check_unseen(bundle, rows, file_facts(TRAIN, "elsewhere.jsonl", rows), never)


def test_without_its_training_rows_there_is_a_warning(
    registry: Registry, others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contract: Contract
) -> None:
    def answered(bundle: Bundle, rows: Sequence[Row]) -> list[ScoredRow]:
        scores = {field.name: 0.9 for field in contract.scored_fields}
        return [ScoredRow(dict(row.answer), scores) for row in rows]

    monkeypatch.setattr("train.fit.calibrated.answers", answered)
    monkeypatch.setattr("train.evaluation.seen.split_path", _gone)
    result = calibrate(tmp_path / "rows.jsonl", others)
    digest = registry.aliases()["champion"]
    assert result.exit_code == 0 and result.stderr == (
        f"Warning: the training rows of adapter {digest[:12]} are not here, so {tmp_path}/rows.jsonl is not "
        "compared with them\n"
    )
    assert registry.aliases()["latest"] != digest


def _gone(bundle: Bundle, split: str) -> Path:
    raise DatasetError("gone")


def test_too_few_valid_answers_leave_everything_as_it_was(
    registry: Registry, others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contract: Contract
) -> None:
    def answered(bundle: Bundle, rows: Sequence[Row]) -> list[ScoredRow]:
        scores = {field.name: 0.9 for field in contract.scored_fields}
        good = [ScoredRow(dict(row.answer), scores) for row in rows[:199]]
        return [*good, *[ScoredRow(None, None, (), "truncated")] * (len(rows) - 199)]

    monkeypatch.setattr("train.fit.calibrated.answers", answered)
    before = files(registry.root)
    result = calibrate(tmp_path / "rows.jsonl", others)
    assert result.exit_code == 2
    assert re.search("199 of 280 labelled rows have a valid answer, 200 are needed", result.output)
    assert files(registry.root) == before
    assert "latest" not in registry.aliases()
