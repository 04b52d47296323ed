"""Which bases take adapters, and which carry a state, is read off the installed vLLM, without importing it."""

from pathlib import Path

import pytest

from batch.engine.architectures import _has_base, _registry, has_state, takes_adapters


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


@pytest.mark.parametrize(
    ("architecture", "carried"),
    [
        ("Qwen3ForCausalLM", False),
        ("Qwen3_5ForCausalLM", True),
        ("JambaForCausalLM", True),
        ("Olmo2ForCausalLM", None),
        ("NobodyForCausalLM", None),
    ],
)
def test_which_layers_carry_a_state(architecture: str, carried: bool | None) -> None:
    assert has_state(architecture) is carried


def test_bases_are_followed_from_file_to_file(tmp_path: Path) -> None:
    (tmp_path / "registry.py").write_text("A = {'X': ('one', 'X')}\nB = {'Y': ('two', 'Y'), 'Z': 3, **A}")
    (tmp_path / "two.py").write_text("class Y(nn.Module, SupportsLoRA): ...\nclass No(nn.Module): ...")
    assert _registry(tmp_path / "registry.py") == {"X": ("one", "X"), "Y": ("two", "Y")}
    (tmp_path / "one.py").write_text("from models.two import Y\nclass Own(Y): ...\nclass X(Own): ...")

    def found(name: str, interface: str = "SupportsLoRA") -> bool:
        return any(_has_base(file, name, interface, tmp_path) for file in tmp_path.glob("[!r]*.py"))

    assert found("X") and not found("No") and not found("X", "IsHybrid")
    assert not _has_base(tmp_path / "none.py", "X", "SupportsLoRA", tmp_path)
