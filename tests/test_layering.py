"""Imports flow one way, and the command line starts without loading what only a run needs."""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "vllm", "transformers", "pyarrow", "polars", "numpy", "tokenizers", "peft", "trl", "xgrammar"}


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def imports(path: Path) -> Iterator[str]:
    """Absolute names of every module that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module", "import_module"):
            yield ast.unparse(node.args[0]).strip("'\"")


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


# The engine, and the LoRA products and the choice of tokens that it puts in vLLM's place on a CPU.
ENGINE = {ROOT / f"batch/engine/{name}.py" for name in ("vllm", "cpu_lora", "cpu_sampling")}


def test_only_the_engine_imports_vllm() -> None:
    importers = {path for package in ("batch", "train") for path in modules(package) if "vllm" in top_level(path)}
    assert importers == ENGINE


def test_batch_never_imports_train() -> None:
    assert [path for path in modules("batch") if "train" in top_level(path)] == []


def test_batch_imports_torch_in_the_engine_only() -> None:
    heavy = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets"}
    importers = {path for path in modules("batch") if heavy & top_level(path)}
    assert importers <= ENGINE


def test_the_core_does_no_input_and_output() -> None:
    """Contract, rules, policy, score and renderer know no table, no engine and no command line."""
    for name in ("errors", "checks", "fields", "rules", "policy", "contract", "tokens", "score"):
        assert not {"pyarrow", "polars", "click", "rich", "numpy"} & top_level(ROOT / f"batch/{name}.py"), name
        assert not {n for n in imports(ROOT / f"batch/{name}.py") if n.startswith("batch.engine")}, name


def loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import batch", set()),
        ("import batch.cli", set()),
        ("import batch.contract", set()),
        ("import batch.engine, batch.run, batch.bundle", {"tokenizers", "pyarrow", "numpy"}),
    ],
)
def test_importing_batch_is_light(statement: str, allowed: set[str]) -> None:
    assert loaded(statement) & HEAVY <= allowed


def test_help_is_quick() -> None:
    """0.3 s on an idle machine; the bound here leaves room for a busy one."""
    script = Path(sys.executable).with_name("batch-route")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert "INPUT OUTPUT" in done.stdout and not done.stderr
        if seconds[-1] < 0.3:
            break
    assert min(seconds) < 0.9, f"best of five: {min(seconds):.2f} s"
