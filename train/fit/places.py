"""Whether what a command is to write can be written, asked before minutes or hours of work."""

from batch.adapter.made import bases_root
from batch.adapter.registry import Registry
from batch.errors import InputError
from batch.storage.places import check_folder
from train.config import Quantisation


def check_registry(registry: Registry) -> None:
    """Refuse a registry that takes no adapter, or no alias for one: `InputError`."""
    what = f"into the registry {registry.root}/"
    for folder in (registry.root, registry.root / "aliases"):
        check_folder(folder, what, "name another folder with BATCH_ROUTE_ADAPTERS")


def check_bases(registry: Registry, original: str, quantisation: Quantisation) -> None:
    """Refuse a place where the base that serves cannot be made, if it has to be and is not there yet:
    `InputError`. `original` is the sha256 of the base trained on.
    """
    if quantisation.type == "none" or quantisation.serve == "original":
        return
    root = bases_root(registry.root)
    try:
        check_folder(root, f"the base that serves into {root}/", "name another folder with BATCH_ROUTE_BASES")
    except InputError:
        from train.fit.serving import expansion_of  # noqa: PLC0415 — torch, for which there is no need else

        if not expansion_of(original, quantisation).home(registry.root / "new").exists():
            raise
