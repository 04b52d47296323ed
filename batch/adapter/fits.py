"""Whether an adapter's weights are for a base model: the layers it changes are there, in its shapes, and none
is missing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch.adapter.files import read_json, read_tensors
from batch.adapter.peft_checks import TOWERS, LoraModule
from batch.errors import AdapterError

# Wrappers that a class of model puts around its layers; a checkpoint and PEFT may name different ones.
WRAPPERS = frozenset({"model", "language_model", "text_model", "transformer"})


def check_fits(adapter: Path, modules: tuple[LoraModule, ...], base: Path) -> None:
    """Every layer that the adapter changes must be the base's, of its shape, and none may be missing."""
    shapes = linear_shapes(base)
    for module in modules:
        shape = shapes.get(canonical(module.name))
        if shape is None:
            raise AdapterError(
                f"{adapter}: its module {module.name} is not in the base model {base}; it was trained "
                "on another, "
                "name that one"
            )
        if shape != (module.outputs, module.inputs):
            raise AdapterError(
                f"{adapter}: its module {module.name} is for a layer of shape "
                f"{[module.outputs, module.inputs]}, in "
                f"the base model {base} it is {list(shape)}; it was trained on another, name that one"
            )
    config = read_json(adapter / "adapter_config.json", "a PEFT adapter")
    present = {canonical(module.name) for module in modules}
    if missing := sorted(set(_targeted(config, shapes)) - present):
        raise AdapterError(
            f"{adapter}: has no weights for {missing[0]}, one of its target_modules ({len(missing)} are "
            "missing); "
            "it is incomplete, copy or train it again"
        )


def linear_shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each matrix of a base model, by its canonical name."""
    return {
        canonical(name.removesuffix(".weight")): tensor.shape
        for file in sorted(base.glob("*.safetensors"))
        for name, tensor in read_tensors(file).items()
        if name.endswith(".weight") and len(tensor.shape) == 2
    }


def canonical(module: str) -> str:
    """A module's name without the wrappers around the layers: checkpoints and classes of one model differ
    there.
    """
    parts = module.split(".")
    while parts and parts[0] in WRAPPERS:
        parts.pop(0)
    return ".".join(parts)


def _targeted(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The base's layers that a list of target modules means; a pattern names none that must be there."""
    targets = config.get("target_modules")
    limits = ("exclude_modules", "layers_to_transform", "layers_pattern")
    if not isinstance(targets, list) or any(config.get(key) is not None for key in limits):
        return []
    wanted = {canonical(str(target)) for target in targets}
    return [
        name
        for name in shapes
        if (name in wanted or any(name.endswith(f".{target}") for target in wanted))
        and not {*TOWERS, "experts"}
        & set(name.split("."))  # PEFT does not take fused experts for linear layers
    ]
