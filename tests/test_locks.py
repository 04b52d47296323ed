"""The pinned packages: one version each, the same on both stacks, and no build of torch in another's place."""

import re
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

CI = Path(__file__).parents[1] / ".ci"
STACKS = ("cpu", "cuda")


def pins(stack: str) -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (CI / f"{stack}.lock").read_text().splitlines()]
    found = [re.split("={2,3}", line) for line in lines if line and not line.startswith("-")]
    names = [name for name, _ in found]
    assert sorted(set(names)) == sorted(names)
    return dict(found)


@pytest.mark.parametrize("stack", STACKS)
def test_each_is_pinned_once(stack: str) -> None:
    assert len(pins(stack)) > 100


def test_the_stacks_agree_on_what_the_project_imports() -> None:
    cpu, cuda = map(pins, STACKS)
    imported = {
        "bitsandbytes",
        "datasets",
        "numpy",
        "peft",
        "polars",
        "pyarrow",
        "ray",
        "tokenizers",
        "transformers",
        "trl",
    }
    assert imported <= cpu.keys() & cuda.keys()
    assert {name: cpu[name] for name in imported} == {name: cuda[name] for name in imported}


def test_no_other_build_of_torch_is_taken() -> None:
    """`==2.13.0` takes 2.13.0+cpu as well, where a wheel of it lies about."""
    assert "+cpu" in pins("cpu")["torch"]
    (line,) = [line for line in (CI / "cuda.lock").read_text().splitlines() if line.startswith("torch=")]
    specifier = SpecifierSet(line.removeprefix("torch"))
    assert specifier.contains(pins("cuda")["torch"]) and not specifier.contains(
        pins("cuda")["torch"] + "+cpu"
    )


def test_cuda_python_has_its_bindings() -> None:
    """It wants those of its own release."""
    cuda = pins("cuda")
    assert SpecifierSet(f"~={cuda['cuda-python']}").contains(cuda["cuda-bindings"])


def test_each_licence_is_listed() -> None:
    """docs/licences.md is made in an environment; that it is of these pins can be told in any."""
    page = (CI.parent / "docs/licences.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w.-]+) \| ([\w.+!-]+) \| \S", page, re.M))
    rows.pop("package")  # the head
    assert rows == pins("cpu") and "not said" not in page and "not installed" not in page
