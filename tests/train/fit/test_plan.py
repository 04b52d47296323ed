"""`plan` counts without a model: the first experiment's figures, and a small model's against the real thing."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from batch.errors import ConfigError
from tests.train.fit.test_qlora import recipe
from train.cli import main
from train.config import Config, Training
from train.fit.model import count_parameters, load_quantised
from train.fit.plan import GIB, make_plan, steps_per_epoch

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_first_experiments_counts_and_steps_without_a_download() -> None:
    plan = make_plan(Config.load(ROOT / "train/qwen3-4b.toml"))
    assert (plan.trainable, plan.total) == (33_030_144, 4_055_498_240)
    assert f"{plan.percent:.2f}" == "0.81"
    assert (plan.rows, plan.steps_per_epoch, plan.steps) == (24, 6, 30)
    sizes = {part: size / GIB for part, (size, _) in plan.memory.items()}
    assert 1.7 < sizes["4-bit base"] < 1.8  # 3.6 billion weights of 4.127 bits
    assert sum(sizes.values()) < 6


def test_the_command_prints_them() -> None:
    result = CliRunner().invoke(main, ["plan", str(ROOT / "train/qwen3-4b.toml")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "33,030,144 of 4,055,498,240 (0.81 %)" in result.output
    assert "30 over 5 epochs of 24 rows, 4 rows a step" in result.output


def test_counts_are_those_of_the_quantised_model(tiny_base: Path, tmp_path: Path) -> None:
    config = recipe(tiny_base, tmp_path)
    plan = make_plan(config)
    assert {"trainable": plan.trainable, "total": plan.total} == count_parameters(
        load_quantised(tiny_base, config)
    )
    assert plan.steps == 6 and plan.supervised_per_epoch and plan.supervised_per_epoch < plan.tokens_per_epoch


def test_a_model_that_is_not_here_needs_a_shape(tmp_path: Path) -> None:
    text = (ROOT / "train/qwen3-4b.toml").read_text()
    start, end = text.index("[base.shape]"), text.index("[data]")
    (tmp_path / "recipe.toml").write_text((text[:start] + text[end:]).replace('"data/', f'"{ROOT}/data/'))
    with pytest.raises(ConfigError, match=r"is not here.*or give its shape under \[base.shape\]"):
        make_plan(Config.load(tmp_path / "recipe.toml"))


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "steps"), [(24, 2, 2, 6), (25, 4, 1, 7), (3, 4, 4, 1), (9, 2, 2, 3)]
)
def test_steps_per_epoch(rows: int, batch: int, accumulation: int, steps: int) -> None:
    assert steps_per_epoch(rows, Training(batch_size=batch, gradient_accumulation=accumulation)) == steps
