"""`batch-train calibrate`, as far as it needs no engine."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from tests.conftest import ROOT, make_bundle
from train.cli import main


def test_too_few_rows_are_refused_before_anything_is_written(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path / "adapters")
    bundle = make_bundle(tiny_bundle.resolve_base(), tiny_bundle.contract, registry.root)
    registry.set_alias("champion", bundle.digest)
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(registry.root))
    before = {path: path.stat().st_mtime_ns for path in registry.root.rglob("*")}
    rows = ROOT / "data/natural.jsonl"
    result = CliRunner().invoke(main, ["calibrate", "champion", str(rows)])
    assert result.exit_code == 2, result.output
    assert result.output == (
        f"Error: {rows}: 191 labelled rows are too few to calibrate on; give 200 or more\n"
    )
    assert {path: path.stat().st_mtime_ns for path in registry.root.rglob("*")} == before
