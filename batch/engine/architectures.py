"""How the installed vLLM serves a base model, read from its source without importing it.

vllm takes ten seconds to import, and says no only when an engine has started. Its registry maps an
architecture to a module and a class; one that takes adapters has `SupportsLoRA` among its bases, one that
mixes attention with layers that carry a state has `IsHybrid`.
"""

import ast
import functools
import importlib.util
from pathlib import Path


def takes_adapters(architecture: str) -> bool | None:
    """Whether vLLM serves `architecture` with LoRA adapters; None where only the engine can tell."""
    return _derives(architecture, "SupportsLoRA", by_transformers=True)


def has_state(architecture: str) -> bool | None:
    """Whether layers of `architecture` carry a state from token to token; None where only the engine can
    tell.
    """
    return _derives(architecture, "IsHybrid", by_transformers=None)


def _derives(architecture: str, interface: str, by_transformers: bool | None) -> bool | None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return None
    models = Path(found.origin).parent / "model_executor" / "models"
    entry = _registry(models / "registry.py").get(architecture)
    if entry is None:  # transformers' own code may serve it, which the engine will tell
        return None
    if entry[0] == "transformers":
        return by_transformers
    return _has_base(models / f"{entry[0]}.py", entry[1], interface, models)


@functools.cache
def _registry(path: Path) -> dict[str, tuple[str, str]]:
    """Every entry ``"Architecture": ("module", "Class")`` of the file."""
    entries: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple):
                    parts = [item.value for item in value.elts if isinstance(item, ast.Constant)]
                    if len(parts) == 2:
                        entries.setdefault(str(key.value), (str(parts[0]), str(parts[1])))
    return entries


def _has_base(path: Path, name: str, interface: str, models: Path) -> bool:
    """Whether class `name` in `path` has the interface, itself or through a base in another of the models'
    files.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError:
        return False
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    imported = {
        alias.asname or alias.name: node.module.rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    if name not in classes:
        return name in imported and _has_base(models / f"{imported[name]}.py", name, interface, models)
    bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name)]
    return interface in bases or any(
        _has_base(path, base, interface, models)
        if base in classes
        else base in imported and _has_base(models / f"{imported[base]}.py", base, interface, models)
        for base in bases
    )
