"""Imports flow one way, and the command line starts without loading what only a run needs."""

import ast
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "vllm",
    "transformers",
    "pyarrow",
    "polars",
    "obstore",
    "numpy",
    "tokenizers",
    "peft",
    "trl",
    "xgrammar",
    "ray",
}


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
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "importlib.import_module",
            "import_module",
        ):
            yield ast.unparse(node.args[0]).strip("'\"")


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


# Each package may import those before it, and nothing of those after it.
CHAIN = {
    "batch": (
        "errors",
        "events",
        "imports",
        "background",
        "parent",
        "contract",
        "storage",
        "adapter",
        "engine",
        "scoring",
        "reporting",
        "launch",
    ),
    "train": (
        "files",
        "config",
        "likeness",
        "label_studio",
        "tables",
        "decisions",
        "dataset",
        "examples",
        "evaluation",
        "labelling",
        "fit",
        "doctor",
        "importing",
        "exporting",
        "diagnosis",
        "release",
        "report",
        "review",
        "commands",
        "cli",
        "mini_base",
    ),
}


def layer(module: str) -> int:
    """Place of a module in its package's chain; what has no room of its own is at the top."""
    package, _, rest = module.partition(".")
    chain = CHAIN[package]
    name = rest.split(".")[0]
    return chain.index(name) if name in chain else len(chain)


def test_packages_form_a_straight_chain() -> None:
    """No module imports from a package above its own: so there is no circle of packages either."""
    upward = []
    for package in CHAIN:
        for path in modules(package):
            own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            upward += [
                f"{own} imports {name}"
                for name in imports(path)
                if name.startswith(f"{package}.") and layer(name) > layer(own)
            ]
    assert upward == []


def test_only_the_engine_imports_vllm() -> None:
    importers = {
        path for package in ("batch", "train") for path in modules(package) if "vllm" in top_level(path)
    }
    assert importers
    assert all(path.is_relative_to(ROOT / "batch/engine") for path in importers)


def test_only_its_launcher_imports_ray() -> None:
    """And an actor's own part does not: it is tested without a cluster."""
    importers = {
        path for package in ("batch", "train") for path in modules(package) if "ray" in top_level(path)
    }
    assert importers == {ROOT / "batch/launch/ray.py"}


def test_batch_never_imports_train() -> None:
    assert [path for path in modules("batch") if "train" in top_level(path)] == []


def test_batch_imports_torch_in_the_engine_only() -> None:
    heavy = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets"}
    importers = {path for path in modules("batch") if heavy & top_level(path)}
    assert all(path.is_relative_to(ROOT / "batch/engine") for path in importers)


def test_the_core_does_no_input_and_output() -> None:
    """Contract, rules, policy, score and renderer know no table, no engine and no command line."""
    core = [
        *modules("batch/contract"),
        *(ROOT / f"batch/{name}.py" for name in ("errors", "adapter/renderer", "scoring/score")),
    ]
    for path in core:
        assert not {"pyarrow", "polars", "click", "rich", "numpy"} & top_level(path), path
        assert not {name for name in imports(path) if name.startswith("batch.engine")}, path


def loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import batch", set()),
        ("import batch.cli", set()),
        ("import batch.contract.contract", set()),
        ("import batch.engine, batch.run, batch.adapter.bundle", {"tokenizers", "pyarrow", "numpy"}),
    ],
)
def test_importing_batch_is_light(statement: str, allowed: set[str]) -> None:
    assert loaded(statement) & HEAVY <= allowed


@pytest.mark.parametrize("program", ["batch-route", "batch-train"])
def test_help_is_quick(program: str) -> None:
    """0.3 s on an idle machine, of the processor's time: a busy one makes it wait, not work."""
    script = Path(sys.executable).with_name(program)
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert f"Usage: {program}" in done.stdout and not done.stderr
        if seconds[-1] < 0.3:
            break
    assert min(seconds) < 0.45, f"best of three: {min(seconds):.2f} s"


def test_only_the_mini_base_knows_the_shipped_task() -> None:
    """No label, fact, system or field of `data/contract.toml` in the code, but for words that any task may have."""
    contract = tomllib.loads((ROOT / "data/contract.toml").read_text(encoding="utf-8"))
    fields = contract["fields"]
    facts = contract["policy"]["facts"]
    words = {field["name"] for field in fields} | {
        label for field in fields for label in field.get("labels", ())
    }
    words |= {word for rule in contract["rules"] for word in rule.get("mentions", ())}
    words |= {word for key in ("generic", "competitors") for word in contract["contrast"][key]}
    words |= {word for values in facts.values() for word in values if isinstance(word, str)}
    words |= set(facts)
    words -= {
        "low",
        "medium",
        "high",
        "risk",
        "reason",
        "none",
        "need",
        "writes",
        "build",
        "system",
        "knowledge",
    }
    found = re.compile(r"\b(" + "|".join(map(re.escape, sorted(words))) + r")\b")
    files = [path for package in ("batch", "train") for path in (ROOT / package).rglob("*") if path.is_file()]
    knowing = [
        f"{path.relative_to(ROOT)}: {found.search(path.read_text(encoding='utf-8'))}"
        for path in files
        if path.suffix in (".py", ".html", ".js")
        and not path.is_relative_to(ROOT / "train/mini_base")
        and found.search(path.read_text(encoding="utf-8"))
    ]
    assert knowing == []
