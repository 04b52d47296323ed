"""`batch-train adapters`: whole words at 80 columns and in a pipe; --json has everything."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from train.cli import main


def test_the_table_and_its_json(tiny_bundle: Bundle, tmp_path: Path) -> None:
    registry = Registry(tiny_bundle.path.parent)
    registry.set_alias("a-quite-long-alias-that-somebody-chose", tiny_bundle.digest)
    environment = {"BATCH_ROUTE_ADAPTERS": str(registry.root), "COLUMNS": "80"}
    result = CliRunner(env=environment).invoke(main, ["adapters", "--json", str(tmp_path / "a.json")])
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if tiny_bundle.digest[:12] in line]
    assert (
        "a-quite-long-alias-that-somebody-chose" in row
        and str(tiny_bundle.base["ref"]) in row
        and "…" not in row
    )
    (told,) = json.loads((tmp_path / "a.json").read_text())
    assert told["digest"] == tiny_bundle.digest and told["rank"] == 4 and told["validation_loss"] is None


@pytest.mark.parametrize("data", [{"train": "x"}, {"train": 5}])
def test_a_bundle_whose_manifest_is_damaged_hides_no_other(
    tiny_bundle: Bundle, tmp_path: Path, data: dict[str, object]
) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / tiny_bundle.digest)
    damaged = shutil.copytree(tiny_bundle.path, tmp_path / ("0" * 64)) / "manifest.json"
    damaged.write_text(json.dumps({**json.loads(damaged.read_text()), "data": data}))
    result = CliRunner(env={"BATCH_ROUTE_ADAPTERS": str(tmp_path)}).invoke(main, ["adapters"])
    assert result.exit_code == 0, result.output
    assert tiny_bundle.digest[:12] in result.stdout and "000000000000" not in result.stdout
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("Warning: 000000000000 is damaged and left out: ")
    assert warning.endswith("manifest.json: data.train is not a table; copy the bundle again")


def test_an_empty_registry_says_which(tmp_path: Path) -> None:
    result = CliRunner(env={"BATCH_ROUTE_ADAPTERS": str(tmp_path)}).invoke(main, ["adapters"])
    assert result.exit_code == 0 and result.output == f"none in {tmp_path}/ yet; run `make train`\n"


@pytest.mark.parametrize(("words", "code"), [(["fit", "nowhere.toml"], 2), (["adapters"], 0)])
def test_stderr_as_json(words: list[str], code: int, tmp_path: Path) -> None:
    """As a process: the option is for a whole one."""
    (tmp_path / ("0" * 64)).mkdir()  # a damaged bundle, which is a warning
    done = subprocess.run(
        [sys.executable, "-m", "train", "--log-json", *words],
        env={**os.environ, "BATCH_ROUTE_ADAPTERS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == code and lines
    assert lines[-1]["event"] == ("error" if code else "warning") and lines[-1]["message"]
    assert {"time", "level", "run", "event", "message"} <= set(lines[-1])
