"""Recipes: what is accepted, what is refused and how it is said; and the command line's errors."""

import errno
import signal
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from batch.cli_errors import ErrorCommand
from batch.errors import ConfigError, EngineError, InputError, Interrupted
from train.cli import main
from train.config import Config

ROOT = Path(__file__).parents[2]
MINIMAL = '[base]\nmodel = "data/mini-base"\n[data]\ncontract = "c.toml"\ntrain = "t.jsonl"\nvalidation = "v.jsonl"\n'


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return Config.load(path)


@pytest.mark.parametrize("name", ["mini", "qwen3-4b"])
def test_shipped_recipes_name_files_that_exist(name: str) -> None:
    config = Config.load(ROOT / f"train/{name}.toml")
    for reference in (config.data.contract, config.data.train, config.data.validation, config.data.test):
        assert config.find(str(reference)).is_file()


def test_the_4b_recipe_is_the_first_experiments() -> None:
    config = Config.load(ROOT / "train/qwen3-4b.toml")
    assert (config.base.model, config.base.revision) == (
        "Qwen/Qwen3-4B-Instruct-2507",
        "cdbee75f17c01a7cc42f958dc650907174af0554",
    )
    assert config.lora.r == 16 and config.quantisation.type == "nf4" and config.quantisation.double
    assert config.training.learning_rate == 2e-4
    assert config.training.batch_size * config.training.gradient_accumulation == 4


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL + "[training]\nepochs = 2\n")
    assert config.lora.r == 16 and config.training.epochs == 2.0 and config.base.revision is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MINIMAL + "[training]\nlearning_rte = 1e-4\n",
            r"unknown key 'learning_rte' in \[training\] \(did you mean 'learning_rate'\?\)",
        ),
        (MINIMAL + "[lorra]\n", r"unknown key 'lorra' in the config \(did you mean 'lora'\?\)"),
        (
            "[base]\nmodel = 'x'\n[data]\ncontract = 'c'\ntrain = 't'\n",
            r"missing key 'validation' in \[data\]",
        ),
        ("[base]\nmodel = 'x'\n", "missing key 'data'"),
        (MINIMAL + "[lora]\nr = '16'\n", r"\[lora\] r must be a whole number, not '16'"),
        (MINIMAL + "[lora]\nr = true\n", r"\[lora\] r must be a whole number"),
        (MINIMAL + "[lora]\nr = 0\n", r"\[lora\] r must be between 1 and 512, not 0"),
        (
            MINIMAL + "[quantisation]\ntype = 'nf5'\n",
            r"one of nf4, fp4, none, not 'nf5' \(did you mean 'nf4'\?\)",
        ),
        (MINIMAL + "[training]\nreport_to = 'wandb'\n", "report_to must be a list of texts"),
        (
            MINIMAL + "[training]\nlearning_rate = nan\n",
            "learning_rate must be between 1e-09 and",
        ),
        (MINIMAL + "[training]\nlearning_rate = 1e39\n", r"learning_rate must be between .* not 1e\+39"),
        (MINIMAL + "[training]\nepochs = 1e300\n", "epochs must be between 1e-09 and 100000"),
        (MINIMAL + f"[training]\nepochs = {10**400}\n", "recipe.toml: int too large .*; correct the file"),
        (MINIMAL + f"[training]\nbatch_size = {10**20}\n", "batch_size must be between 1 and 65536"),
        (MINIMAL + f"[training]\nseed = {2**32}\n", "seed must be between 0 and 4294967295, not 4294967296"),
        (MINIMAL + f"[training]\nseed = 0x{'f' * 5000}\n", "recipe.toml: Exceeds the limit"),
        (
            MINIMAL + f"[training]\nseed = {'9' * 5000}\n",
            "recipe.toml: Exceeds the limit.*; correct the file",
        ),
        (MINIMAL + f"[lora]\nalpha = {10**50}\n", r"\[lora\] alpha must be between 1 and 100000"),
        (MINIMAL + "[training]\nmax_steps = 0\n", "max_steps must be at least 1 .*, or -1"),
        (
            MINIMAL + f"[training]\nmax_steps = {10**25}\n",
            "max_steps must be at least 1 and at most 1000000000",
        ),
        (MINIMAL.replace("t.jsonl", ""), r"\[data\] train is empty; write a name, or leave the key out"),
        (MINIMAL.replace("c.toml", " "), r"\[data\] contract is empty"),
        (MINIMAL + "test = ''\n", r"\[data\] test is empty"),
        (MINIMAL.replace("data/mini-base", ""), r"\[base\] model is empty"),
        (
            "a = " + "[" * 5000 + "]" * 5000,
            "recipe.toml: maximum recursion depth exceeded.*; correct the file",
        ),
        (
            MINIMAL + "[calibration]\ntarget_error = 0.9\n",
            r"\[calibration\] target_error must be between 0.0001 and 0.5",
        ),
        (MINIMAL + "path = 'x'\n", r"unknown key 'path' in \[data\]"),
        ("path = 'x'\n" + MINIMAL, "unknown key 'path' in the config"),
        ("base = 3\n", r"\[base\] must be a table|missing key"),
        ("[base\n", "correct the file"),
        (
            MINIMAL.replace('"data/mini-base"', '"x"\n[base.shape]\nhidden = 3'),
            r"unknown key 'hidden' in \[base.shape\]",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_the_command_lines_error_target_goes_before_the_recipes(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL + "calibration = 'rows.jsonl'\n[calibration]\ntarget_error = 0.1\n")
    assert config.calibration.target_error == 0.1 and config.data.calibration == "rows.jsonl"
    assert config.with_target_error(0.03).recipe()["calibration"] == {"target_error": 0.03}


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file c\.toml.*correct the path"):
        load(tmp_path, MINIMAL).find("c.toml")


def test_paths_are_found_from_the_config_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "c.toml").write_text("")
    (tmp_path / "train/recipe.toml").write_text(MINIMAL)
    monkeypatch.chdir("/")
    assert Config.load(tmp_path / "train/recipe.toml").find("c.toml") == (tmp_path / "c.toml").resolve()


def test_the_command_line_ends_in_one_line_and_the_errors_code(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(MINIMAL + "[lora]\nrank = 4\n")
    for command in ("fit", "plan"):
        result = CliRunner().invoke(main, [command, str(path)])
        assert result.exit_code == 2 and result.output == f"Error: {path}: unknown key 'rank' in [lora]\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (EngineError("gone; run again"), 75, "Error: gone; run again\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x"),
            75,
            "Error: no space left at x; free some space, then run again to resume\n",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            75,
            "Error: too many open files; raise `ulimit -n`, then run again to resume\n",
        ),
        (
            MemoryError(),
            75,
            "Error: out of memory or threads; free some, or give the run more, then run again to resume\n",
        ),
        (
            ModuleNotFoundError("No module named 'vllm'", name="vllm"),
            2,
            "Error: the package vllm is not installed; run `make setup`, or pip install "
            "'batch-route[engine]'\n",
        ),
        (InputError("a\x1b[31m\nb\u202e\udcff"), 2, "Error: a\\x1b[31m b\\u202e\\udcff\n"),
        (KeyboardInterrupt(), 130, "Interrupted; run again to resume\n"),
        (Interrupted(signal.SIGHUP), 129, "Interrupted; run again to resume\n"),
    ],
)
def test_exit_codes(error: BaseException, code: int, line: str) -> None:
    @click.command(cls=ErrorCommand)
    def command() -> None:
        raise error

    result = CliRunner().invoke(command)
    assert (result.exit_code, result.output) == (code, line)
