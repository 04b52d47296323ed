"""Which bases take adapters is read off the installed vLLM, without importing it."""

from pathlib import Path

import pytest

from batch.engine.architectures import _has_base, _registry, takes_adapters


@pytest.mark.parametrize(
    ("architecture", "taken"),
    [
        ("Qwen2ForCausalLM", True),
        ("Qwen3ForCausalLM", True),
        ("LlamaForCausalLM", True),
        ("MistralForCausalLM", True),  # through Llama's class in another file
        ("Phi3ForCausalLM", True),
        ("Gemma3ForCausalLM", True),
        ("Gemma3ForConditionalGeneration", True),
        ("Olmo2ForCausalLM", True),  # through transformers' own code
        ("GPT2LMHeadModel", False),
        ("FalconForCausalLM", False),
        ("NobodyForCausalLM", None),
    ],
)
def test_what_vllm_serves_with_adapters(architecture: str, taken: bool | None) -> None:
    assert takes_adapters(architecture) is taken


def test_bases_are_followed_from_file_to_file(tmp_path: Path) -> None:
    (tmp_path / "registry.py").write_text("A = {'X': ('one', 'X')}\nB = {'Y': ('two', 'Y'), 'Z': 3, **A}")
    (tmp_path / "two.py").write_text("class Y(nn.Module, SupportsLoRA): ...\nclass No(nn.Module): ...")
    assert _registry(tmp_path / "registry.py") == {"X": ("one", "X"), "Y": ("two", "Y")}
    (tmp_path / "one.py").write_text("from models.two import Y\nclass Own(Y): ...\nclass X(Own): ...")
    assert _has_base(tmp_path / "one.py", "X", tmp_path)
    assert not _has_base(tmp_path / "two.py", "No", tmp_path) and not _has_base(
        tmp_path / "none.py", "X", tmp_path
    )
