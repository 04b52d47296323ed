"""What an adapter's tensors say: all of it is served, or the adapter is refused with the true reason."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from batch.adapter.fits import check_fits
from batch.adapter.peft_checks import highest_rank, lint
from batch.errors import AdapterError

OUTPUTS = {"q_proj": 64, "k_proj": 32, "v_proj": 32}
Tensors = dict[str, torch.Tensor]


def name(layer: int, module: str, side: str) -> str:
    return f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight"


def adapter(folder: Path, change: Callable[[Tensors], object] = lambda t: None, **config: Any) -> Path:
    """A PEFT folder for `tiny_base` of rank 4 on q, k and v, after `change`."""
    tensors: Tensors = {}
    for layer in (0, 1):
        for module, outputs in OUTPUTS.items():
            tensors[name(layer, module, "A")] = torch.full((4, 64), 0.1)
            tensors[name(layer, module, "B")] = torch.full((outputs, 4), 0.1)
    change(tensors)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": sorted(OUTPUTS)}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    return folder


PATHS = [f"model.layers.{layer}.self_attn.{module}" for layer in (0, 1) for module in OUTPUTS]


@pytest.mark.parametrize(
    "targets",
    [sorted(OUTPUTS), PATHS, r".*\.(q|k|v)_proj", "all-linear", ["self_attn.q_proj", "k_proj", "v_proj"]],
)
def test_targets_are_read_off_the_tensors_however_they_are_written(
    tmp_path: Path, tiny_base: Path, targets: Any
) -> None:
    modules = lint(adapter(tmp_path / "a", target_modules=targets))
    assert sorted(module.name for module in modules) == sorted(PATHS)
    assert {module.leaf for module in modules} == set(OUTPUTS)
    check_fits(tmp_path / "a", modules, tiny_base)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_width_of_number_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    def cast(tensors: Tensors) -> None:
        tensors.update({key: value.to(dtype) for key, value in tensors.items()})

    assert len(lint(adapter(tmp_path / "a", cast))) == 6

    def spoil(tensors: Tensors) -> None:
        cast(tensors)
        tensors[name(1, "k_proj", "B")][3, 1] = float("nan")

    with pytest.raises(AdapterError, match=r"layers\.1\.self_attn\.k_proj\.lora_B\.weight holds NaN"):
        lint(adapter(tmp_path / "b", spoil))


def test_a_rank_of_its_own_is_counted(tmp_path: Path) -> None:
    def raise_rank(tensors: Tensors) -> None:
        for layer in (0, 1):
            tensors[name(layer, "v_proj", "A")] = torch.ones(24, 64)
            tensors[name(layer, "v_proj", "B")] = torch.ones(32, 24)

    path = adapter(tmp_path / "a", raise_rank, rank_pattern={"v_proj": 24, "nowhere": 40})
    modules = lint(path)
    assert {module.rank for module in modules} == {4, 24} and highest_rank(path, modules) == 40


def put(key: str, value: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(name(0, "q_proj", "A"), torch.full((4, 64), float("inf"))), "holds a number that overflows"),
        (put(name(0, "q_proj", "A"), torch.full((4, 64), 1e300, dtype=torch.float64)), "a number that overflows"),
        (put(name(0, "q_proj", "A"), torch.full((4, 64), 1e32)), r"the update of .*q_proj overflows"),
        (lambda t: t.pop(name(0, "q_proj", "A")), r"lacks lora_A of model\.layers\.0\.self_attn\.q_proj"),
        (lambda t: t.pop(name(1, "v_proj", "B")), r"lacks lora_B of model\.layers\.1\.self_attn\.v_proj"),
        (put(name(0, "q_proj", "B"), torch.ones(64, 3)), "do not form a pair"),
        (put(name(0, "q_proj", "B"), torch.ones(64)), "not a matrix of floating-point numbers"),
        (put(name(0, "q_proj", "B"), torch.ones(64, 4, dtype=torch.int8)), "not a matrix of floating-point numbers"),
        (put("base_model.model.lm_head.lora_A.weight", torch.ones(4, 64)), "lacks lora_B of lm_head"),
        (put("base_model.model.model.embed_tokens.weight", torch.ones(9, 64)), "is the whole embedding"),
        (put("base_model.model.lm_head.weight", torch.ones(9, 64)), "is the whole output layer"),
        (put("base_model.model.model.embed_tokens.lora_embedding_A", torch.ones(4, 9)), "adapts an embedding"),
        (put(name(0, "q_proj", "B").replace("weight", "bias"), torch.ones(64)), "is a bias"),
        (put("base_model.model.x.lora_magnitude_vector.weight", torch.ones(64)), "is DoRA's"),
        (put(name(0, "q_proj", "A").replace(".weight", ".default.weight"), torch.ones(4, 64)), "not a name that PEFT"),
        (put("model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(4, 64)), "not a name that PEFT gives"),
        (lambda t: t.clear(), "holds no weights"),
    ],
)  # fmt: skip
def test_weights_that_would_be_served_in_part_or_wrong_are_refused(
    tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    with pytest.raises(AdapterError, match=message) as refused:
        lint(adapter(tmp_path / "a", change))
    assert "\n" not in str(refused.value)


def test_the_output_layer_is_refused_by_its_name(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(4, 64)
        tensors["base_model.model.lm_head.lora_B.weight"] = torch.ones(1024, 4)

    with pytest.raises(AdapterError, match="lm_head adapts the output layer, which is not served"):
        lint(adapter(tmp_path / "a", add, target_modules=[*OUTPUTS, "lm_head"]))


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda t: [t.pop(name(1, "k_proj", side)) for side in "AB"], {}, r"has no weights for layers\.1\.self_attn\.k_proj"),
        (lambda t: None, {"target_modules": [*OUTPUTS, "o_proj"]}, r"no weights for layers\.0.*\(2 are missing\)"),
        (put(name(0, "k_proj", "B"), torch.ones(64, 4)), {}, r"k_proj is for a layer of shape \[64, 64\], .* \[32, 64\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_base_is_refused(
    tmp_path: Path, tiny_base: Path, change: Callable[[Tensors], object], config: dict[str, Any], message: str
) -> None:
    path = adapter(tmp_path / "a", change, **config)
    with pytest.raises(AdapterError, match=message):
        check_fits(path, lint(path), tiny_base)


def test_layers_left_out_on_purpose_are_not_missing(tmp_path: Path, tiny_base: Path) -> None:
    def drop(tensors: Tensors) -> None:
        for module in OUTPUTS:
            for side in "AB":
                tensors.pop(name(1, module, side))

    for config in (
        {"exclude_modules": r".*layers\.1.*"},
        {"layers_to_transform": [0]},
        {"target_modules": PATHS[:3]},
    ):
        path = adapter(tmp_path / "a", drop, **config)
        check_fits(path, lint(path), tiny_base)


ENDLESS = r"([a-z_0-9.]+)*!"  # 2^n ways to divide a name of n characters


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": f".*_proj|{ENDLESS}"},  # only over the modules around those that it names
        {"target_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 8}},
        {"alpha_pattern": {ENDLESS: 8}},
        {"exclude_modules": ENDLESS},
        {"layers_to_transform": [0, 1], "layers_pattern": ENDLESS},
    ],
)
def test_an_expression_that_never_ends_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    """It would hang PEFT, vLLM and this process, which no signal but SIGKILL could end."""
    with pytest.raises(AdapterError, match=r"takes too long to match; name the modules instead"):
        lint(adapter(tmp_path / "a", **config))


@pytest.mark.parametrize("wrong", ["((", "(" * 5000 + ")" * 5000, "a{99999999999}"])
def test_what_is_no_expression_where_it_is_matched_is_refused(tmp_path: Path, wrong: str) -> None:
    for config in ({"target_modules": wrong}, {"rank_pattern": {wrong: 4}}):
        with pytest.raises(AdapterError, match="is not a regular expression"):
            lint(adapter(tmp_path / "a", **config))
    with pytest.raises(AdapterError, match="global flags not at the start"):
        lint(adapter(tmp_path / "a", rank_pattern={"(?i)Q_PROJ": 4}))
    lint(adapter(tmp_path / "a", target_modules="(?i).*_PROJ"))


def test_expressions_that_people_write_are_served(tmp_path: Path) -> None:
    """Unsloth's has five unbounded repeats, and so no limit is put on their number."""
    unsloth = (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
        r"(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
        r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:k_proj|v_proj|q_proj|o_proj)))"
    )
    for targets in (
        unsloth,
        r"(?:\w+\.)*(q|k|v)_proj",
        r"^model\.layers\.(?!8|9)\d+\.self_attn\.[qkv]_proj$",
    ):
        assert len(lint(adapter(tmp_path / "a", target_modules=targets))) == 6


@pytest.mark.parametrize("cut", [1, 1000, 20_000])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    path = adapter(tmp_path / "a")
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-cut])
    with pytest.raises(AdapterError, match=r"cut off before the end of|is not a safetensors file"):
        lint(path)


def header(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


@pytest.mark.parametrize(
    "content",
    [
        header(b"[" * 100_000),
        header(b'{"a": 1}'),
        header(
            b'{"a": {"dtype": "F32", "shape": [4000000000, 4000000000], "data_offsets": [0, 4]}}' + b" " * 8
        ),
        header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}'),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4000000000]}}'),
        struct.pack("<Q", 1 << 60),
    ],
)
def test_a_lying_header_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    path = adapter(tmp_path / "a")
    (path / "adapter_model.safetensors").write_bytes(content + bytes(8))
    with pytest.raises(AdapterError):
        lint(path)


def test_nested_json_is_refused(tmp_path: Path) -> None:
    path = adapter(tmp_path / "a")
    (path / "adapter_config.json").write_text('{"a":' * 100_000)
    with pytest.raises(AdapterError, match="cannot be read"):
        lint(path)
    (path / "adapter_config.json").write_bytes(
        b"\xef\xbb\xbf" + (adapter(tmp_path / "b") / "adapter_config.json").read_bytes()
    )
    assert np.all([module.rank == 4 for module in lint(path)])  # a byte order mark is no part of the text


@pytest.mark.parametrize("value", [5, True, [5], {"a": 1}])
def test_a_layers_pattern_of_another_kind_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(AdapterError, match="layers_pattern is no text and no list of texts"):
        lint(adapter(tmp_path / "a", lambda t: None, layers_pattern=value))
