"""The doctor: green on the default adapter, and each of its twelve checks red on a bundle that is broken for it."""

import functools
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from batch.adapter.base_model import base_digest
from batch.adapter.bundle import Bundle, seal_bundle
from batch.engine import Completion, EngineSpec
from batch.engine.process import EngineProcess
from batch.reporting.console import PlainConsole
from tests.conftest import ROOT
from train.cli import main
from train.dataset import load_rows
from train.doctor import Check, doctor
from train.doctor.check import NAMES, show
from train.doctor.grammar import ServedGrammar
from train.doctor.served import Served, stop_problems


@pytest.fixture(scope="module")
def engine(trained: Bundle) -> Iterator[EngineProcess]:
    base = str(trained.resolve_base())
    with EngineProcess(
        EngineSpec("vllm", base, base, trained.renderer.max_model_len, trained.rank)
    ) as process:
        yield process


Change = Callable[[Path, dict[str, Any]], None]


def broken(trained: Bundle, folder: Path, change: Change) -> Bundle:
    """A copy of the bundle with something changed, sealed again as if training had made it so."""
    shutil.copytree(trained.path, folder)
    manifest = {key: value for key, value in trained.manifest.items() if key != "files"}
    change(folder, manifest)
    seal_bundle(folder, manifest)
    return Bundle.open(folder)


def edit(name: str, change: Callable[[str], str]) -> Change:
    def apply(folder: Path, manifest: dict[str, Any]) -> None:
        before = (folder / name).read_text(encoding="utf-8")
        after = change(before)
        assert after != before
        (folder / name).write_text(after, encoding="utf-8")

    return apply


def edit_json(name: str, change: Callable[[Any], Any]) -> Change:
    def apply(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return edit(name, apply)


def found(checks: list[Check]) -> dict[str, Check]:
    assert tuple(check.name for check in checks) == NAMES
    return {check.name: check for check in checks}


@pytest.fixture(scope="module")
def examine(
    trained: Bundle, engine: EngineProcess, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Change], dict[str, Check]]:
    """What the doctor finds once the bundle is changed so; each change is examined once."""

    @functools.cache
    def examined(change: Change) -> dict[str, Check]:
        return found(
            doctor(broken(trained, tmp_path_factory.mktemp("changed") / "bundle", change), engine=engine)
        )

    return examined


@pytest.mark.parametrize("terminal", [True, False])
def test_a_check_wraps_beside_its_name_on_a_terminal_and_is_one_line_elsewhere(terminal: bool) -> None:
    stream = io.StringIO()
    checks = [Check("4-bit skew", True, "word " * 40), Check("three arms", False, "[bold]\x1b[31m")]
    show(checks, PlainConsole(file=stream, force_terminal=terminal, color_system=None, width=80))
    lines = stream.getvalue().splitlines()
    assert (max(map(len, lines)) <= 80 and len(lines) > 3) if terminal else len(lines) == 2
    assert lines[0].startswith("ok    4-bit skew") and "[bold]\\x1b[31m" in lines[-1]


def test_the_default_adapter_is_sound(trained: Bundle, engine: EngineProcess) -> None:
    checks = doctor(trained, engine=engine)
    assert [str(check) for check in checks if not check.ok] == []
    # of 12 or more, at least 10: it has learned the form itself
    assert "free 1" in found(checks)["three arms"].detail
    # no request text
    assert not any(word in str(check) for check in checks for word in ("sales analyst", "invoices"))


def without_turn_end(text: str) -> str:
    return text.replace("<|im_end|>", "")


def longer_prompt(text: str) -> str:
    return text.replace("assistant\\n' }}", "assistant\\n{' }}")


def swap_tokens(content: Any) -> None:
    """Exchange the ids of two tokens of which one begins every answer."""
    vocabulary = content["model"]["vocab"]
    vocabulary['{"'], vocabulary["ing"] = vocabulary["ing"], vocabulary['{"']


def drop_glean(content: Any) -> None:
    """A contract that lost the label which training rows have."""
    labels = content["fields"][2]["labels"]
    labels["Search"] = labels.pop("Glean")
    content["policy"], content["rules"] = {}, content["rules"][-2:]


def ask_for_more(content: Any) -> None:
    content["input"]["max_tokens"] = 5000


def fewer_tokens(content: Any) -> None:
    content["tokens"]["supervised"] -= 7


LONGER, ENDLESS = (edit("chat_template.jinja", change) for change in (longer_prompt, without_turn_end))
SWAPPED = edit_json("tokenizer.json", swap_tokens)
CASES: dict[str, tuple[str, Change, str]] = {
    "prompt ids": ("prompt ids", LONGER, "part at prompt token"),
    "prompt is a prefix": ("prompt is a prefix", LONGER, "leaves what was trained"),
    "turn end": ("end of turn", ENDLESS, "does not end an answer with the end of turn"),
    "other stop": ("end of turn", edit("tokenizer_config.json", lambda t: t.replace('"eos_token": "<|im_end|>"', '"eos_token": "<|im_start|>"')), "does not end an answer with the end of turn"),
    "cut": ("nothing cut", edit_json("metrics.json", fewer_tokens), r"answer tokens; never cut a row"),
    "changed data": ("nothing cut", lambda folder, manifest: manifest["data"]["train"].update(sha256="0" * 64), "is not the file that was trained on"),
    "mask": ("loss mask", SWAPPED, "do not decode to the answer"),
    "gold": ("gold answers", edit_json("contract.json", drop_glean), "refuses its answer"),
    "grammar": ("grammar fires", SWAPPED, "outside the contract"),
    "settings": ("decoding settings", edit_json("contract.json", ask_for_more), r"the base holds 2048.*lower \[input\] max_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_check_catches_the_bundle_broken_for_it(
    examine: Callable[[Change], dict[str, Check]], case: str
) -> None:
    name, change, detail = CASES[case]
    check = examine(change)[name]
    assert not check.ok
    assert re.search(detail, check.detail), check.detail


def test_the_first_experiments_failure_is_caught_by_name(
    examine: Callable[[Change], dict[str, Check]],
) -> None:
    """A template without the turn end: training and serving no longer agree where an answer ends."""
    checks = examine(ENDLESS)
    assert not checks["end of turn"].ok
    assert "chat template does not end an answer" in checks["end of turn"].detail
    assert not checks["prompt ids"].ok


def scaled(factor: float) -> Change:
    """An adapter of which only `factor` is left."""

    def apply(folder: Path, manifest: dict[str, Any]) -> None:
        weights = load_file(folder / "adapter_model.safetensors")
        save_file(
            {k: v * factor if "lora_B" in k else v for k, v in weights.items()},
            folder / "adapter_model.safetensors",
        )

    return apply


def test_what_was_not_learned_is_told_from_what_the_grammar_shows(
    trained: Bundle, engine: EngineProcess, tmp_path: Path
) -> None:
    """A twentieth of the adapter acts, and guided it answers validly; by itself it does not."""
    checks = found(doctor(broken(trained, tmp_path / "bundle", scaled(0.05)), engine=engine))
    assert checks["adapter acts"].ok
    assert (
        not checks["three arms"].ok and "the grammar alone holds the form up" in checks["three arms"].detail
    )
    assert re.search("valid of 16: guided (1[0-9]), free 0,", checks["three arms"].detail)


def test_an_answer_that_runs_on_is_told_with_its_loop() -> None:
    """What the first experiment saw: `assistant` line after line."""
    ended, looping = (
        Completion(0, [5, 6], [0, 0], "stop"),
        Completion(0, [1, 2, *[7, 8] * 20], [0.0] * 42, "length"),
    )
    assert stop_problems(Served({}, [], {"guided": [ended], "free": [ended]})) == []
    (problem,) = stop_problems(Served({}, [], {"guided": [ended], "free": [looping]}))
    assert "the free answer to the canary does not end: it repeats its last 2 tokens" in problem
    assert stop_problems(Served({}, [], {}, "vLLM refuses it")) == ["vLLM refuses it"]


def test_an_adapter_that_does_nothing(trained: Bundle, engine: EngineProcess, tmp_path: Path) -> None:
    check = found(doctor(broken(trained, tmp_path / "bundle", scaled(0.0)), engine=engine))["adapter acts"]
    assert not check.ok and "changes nothing" in check.detail


def test_a_bundle_that_does_not_open_fails_the_lint(trained: Bundle, tmp_path: Path) -> None:
    """DoRA, which vLLM does not serve; and the command says so with exit code 2, a line each, and in JSON."""
    shutil.copytree(trained.path, tmp_path / "bundle")
    edit_json("adapter_config.json", lambda content: content.update(use_dora=True))(tmp_path / "bundle", {})
    seal_bundle(tmp_path / "bundle", {"base": dict(trained.base)})
    result = CliRunner().invoke(
        main, ["doctor", str(tmp_path / "bundle"), "--json", str(tmp_path / "doctor.json")]
    )
    assert result.exit_code == 2
    lines = [line for line in result.output.splitlines() if line.startswith(("ok ", "FAIL"))]
    assert len(lines) == 12 and "DoRA" in lines[NAMES.index("adapter lint")]
    content = json.loads((tmp_path / "doctor.json").read_text())
    assert content["ok"] is False and [check["name"] for check in content["checks"]] == list(NAMES)


CHANNELS = slice(0, None, 64)  # one input channel in each block that NF4 quantises together
LARGE = 1024.0  # a power of two, so that the full-precision model computes the same


def test_a_base_that_four_bits_cannot_hold(trained: Bundle, tmp_path: Path) -> None:
    """Moving a scale from the norms into the weights changes nothing in full precision, and drowns NF4's other weights."""
    base = tmp_path / "base"
    shutil.copytree(trained.original_base(), base)
    weights = load_file(base / "model.safetensors")
    readers = {
        "input_layernorm": ("q_proj", "k_proj", "v_proj"),
        "post_attention_layernorm": ("gate_proj", "up_proj"),
    }
    for name, weight in weights.items():
        if ".layers." in name and name.split(".")[-2] in readers:
            weight[CHANNELS] /= LARGE
        elif any(name.split(".")[-2] in modules for modules in readers.values()):
            weight[:, CHANNELS] *= LARGE
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})

    def onto(folder: Path, manifest: dict[str, Any]) -> None:
        adapter = load_file(folder / "adapter_model.safetensors")
        for name, weight in adapter.items():
            if "lora_A" in name and any(
                f".{module}." in name for modules in readers.values() for module in modules
            ):
                weight[:, CHANNELS] *= LARGE
        save_file(adapter, folder / "adapter_model.safetensors")
        manifest["base"] = {"ref": str(base), "revision": None, "sha256": base_digest(base)}
        del manifest["served_base"]  # served on the original, which training never saw

    checks = found(doctor(broken(trained, tmp_path / "bundle", onto)))
    assert not checks["4-bit skew"].ok and 'serve = "expanded"' in checks["4-bit skew"].detail
    assert checks["three arms"].ok and checks["adapter acts"].ok


def test_the_grammar_is_the_engines(trained: Bundle) -> None:
    """Gold answers pass, each of them cut short or changed does not; masks forbid what `refuses` does."""
    renderer = trained.renderer
    grammar = ServedGrammar(trained.path, trained.contract.grammar, renderer.end_of_turn_id, 14464)
    for row in load_rows(ROOT / "data/v1/test.jsonl", trained.contract):
        ids = renderer.encode_answer(dict(row.answer))
        assert grammar.refuses(ids) is None
        assert grammar.refuses(ids[:-1]) == len(ids) - 1
        assert grammar.refuses(ids[3:]) == 0
        masks = grammar.masks(ids)
        assert masks[range(len(ids)), ids].all() and not masks[:-1, renderer.end_of_turn_id].any()
        assert masks[-1].sum() == 1
