"""A base's `config.json` as a stranger may have it: what is of another kind is refused, or says nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from batch.adapter.base_model import check_divides, check_holds, local_folder, positions
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.errors import AdapterError, InputError, PositionsError
from train.fit.base_checks import checked_renderer


@pytest.mark.parametrize(
    ("config", "room"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 4096}, 512),
        ({"text_config": 5, "max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": "4096"}, None),
        ({"n_positions": 100, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 400),
        ({"n_positions": 100, "rope_scaling": {"type": "yarn", "factor": float("inf")}}, 100),
        ({"n_positions": 100, "rope_scaling": {"type": "yarn", "factor": float("nan")}}, 100),
        ({"n_positions": 100, "rope_scaling": {"rope_type": 5, "factor": "x"}}, 100),
        ({"n_positions": 100, "rope_scaling": [1]}, 100),
    ],
)
def test_positions(config: dict[str, Any], room: int | None) -> None:
    assert positions(config) == room


@pytest.mark.parametrize("value", [None, 0, -1, True, 2.0, "x", [1], {}])
def test_sizes_of_another_kind_are_not_divided(tmp_path: Path, value: Any) -> None:
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    (tmp_path / "config.json").write_text(json.dumps({**dict.fromkeys(names, value), "text_config": value}))
    check_divides(tmp_path, 2)
    (tmp_path / "config.json").write_text(
        json.dumps({"num_attention_heads": 3, "num_key_value_heads": value})
    )
    with pytest.raises(InputError, match="num_attention_heads"):
        check_divides(tmp_path, 2)


@pytest.mark.parametrize("value", [None, [], 5, "Qwen3ForCausalLM", {"a": 1}])
def test_architectures_are_a_list(tiny_base: Path, contract: Contract, tmp_path: Path, value: Any) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": value}))
    with pytest.raises(AdapterError, match="names no architecture"):
        checked_renderer(folder, contract)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "/".join("y" * 300)])
def test_a_base_of_a_name_that_is_no_path_is_not_there(tmp_path: Path, name: str) -> None:
    assert local_folder(name, tmp_path) is None


@pytest.mark.parametrize(
    ("spare", "remedy"),
    [(1, r"lower \[input\]"), (0, "use fewer labels, or choose a base with more positions")],
)
def test_a_base_too_small_is_told_by_what_would_help(
    tiny_base: Path, contract: Contract, tmp_path: Path, spare: int, remedy: str
) -> None:
    """Where prompt and answer alone do not fit, no shorter request helps."""
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    renderer = Renderer.load(folder, contract)
    room = renderer.max_model_len - contract.max_tokens + spare
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": room}))
    with pytest.raises(PositionsError, match=remedy):
        check_holds(folder, renderer)
