"""The adapter bundle: a plain PEFT adapter folder that carries its contract, tokenizer and proof.

A bundle is `adapter_model.safetensors` and `adapter_config.json` (PEFT's own files) with `contract.json`, the
base's tokenizer files, metrics, calibration and a card. `manifest.json`, written last, holds the sha256 of
every other file; the bundle's digest is the sha256 of that list. Serving reads the contract and the tokenizer
from here, so it cannot drift from training.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch.adapter.base_model import base_digest, check_holds, local_folder, resolve_base
from batch.adapter.calibration import Calibration
from batch.adapter.expanded import Expansion
from batch.adapter.files import no_remote_code, read_json
from batch.adapter.fits import check_fits
from batch.adapter.peft_checks import LoraModule, highest_rank, lint
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.contract.json_text import pretty_json
from batch.errors import AdapterError
from batch.storage.digest import bundle_digest, file_digest
from batch.storage.location import write_file

MANIFEST = "manifest.json"
REQUIRED = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "contract.json",
    "metrics.json",
    "calibration.json",
)
BASE_FOLDER = "base_folder"  # of the manifest: where the base was when the bundle was made, if in a folder
TABLES = ("data", "recipe", "versions")  # of the manifest, where they are there
HUB = {
    ".cache",
    ".gitattributes",
    "README.md",
}  # lie beside a bundle that came from the Hub; nothing reads them
FORBIDDEN_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".py"}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A verified adapter bundle. :meth:`open` is the only way to get one."""

    path: Path
    digest: str  # sha256, 64 hex digits
    contract: Contract
    renderer: Renderer
    modules: tuple[LoraModule, ...]  # what the adapter changes, as its tensors say
    rank: int
    calibration: Calibration
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Verify every file's digest, lint the adapter, compile the contract. Raises `AdapterError`."""
        path = Path(path)
        manifest = read_json(
            path / MANIFEST, "an adapter bundle (its manifest is written last: was training finished?)"
        )
        digests = manifest.get("files")
        if not isinstance(digests, dict):
            raise AdapterError(f"{path}: {MANIFEST} has no list of files; train the adapter again")
        base = manifest.get("base")
        if not isinstance(base, dict) or not _names_base(base):
            raise AdapterError(
                f"{path}: {MANIFEST} does not say which base model it is for; train the adapter again"
            )
        if wrong := [key for key in TABLES if not _is_table(manifest.get(key, {}))]:
            raise AdapterError(f"{path}: {MANIFEST}: {wrong[0]} is not a table; copy the bundle again")
        for name in REQUIRED:
            if name not in digests:
                raise AdapterError(f"{path}: {MANIFEST} does not list {name}; train the adapter again")
        present = {file.name for file in path.iterdir()} - {MANIFEST} - (HUB - set(digests))
        if strange := sorted(name for name in present if Path(name).suffix.lower() in FORBIDDEN_SUFFIXES):
            raise AdapterError(
                f"{path}: holds {strange[0]}; only safetensors and data files are ever loaded, remove it"
            )
        if unlisted := sorted(present - set(digests)):
            raise AdapterError(
                f"{path}: {unlisted[0]} is not in {MANIFEST}; remove it or copy the bundle again"
            )
        for name, digest in digests.items():
            if Path(name).name != name or not (path / name).is_file():
                raise AdapterError(f"{path}: {name} is missing; copy the bundle again")
            if file_digest(path / name) != digest:
                raise AdapterError(
                    f"{path}: {name} differs from its sha256 in {MANIFEST}; copy the bundle again"
                )
        no_remote_code(path)
        modules = lint(path)
        contract = Contract.load(path / "contract.json")
        renderer = Renderer.load(path, contract)
        calibration = Calibration.load(path / "calibration.json", contract)
        rank = highest_rank(path, modules)
        return cls(path, bundle_digest(digests), contract, renderer, modules, rank, calibration, manifest)

    @property
    def base(self) -> Mapping[str, Any]:
        """The base model it was trained on: `ref`, `revision`, `sha256`; and `served`, where those weights
        were quantised for training and are served expanded.
        """
        served = self.manifest.get("served_base")
        return {**self.manifest["base"], **({"served": served} if served else {})}

    @property
    def expansion(self) -> Expansion | None:
        """What serves, where that is not the base as it was."""
        served = self.manifest.get("served_base")
        return Expansion.of(served) if served else None

    @property
    def lora_modules(self) -> tuple[str, ...]:
        """Last names of the layers that the adapter changes: what vLLM must make room for."""
        return tuple(sorted({module.leaf for module in self.modules}))

    def resolve_base(self, override: str | None = None) -> Path:
        """Local folder of the base model that serves, checked. Raises `AdapterError`.

        That is the base trained on, expanded from 4 bits where `served_base` says so: made from the original
        if it is not here. An override is the original at another place; other weights are refused.
        """
        if self.expansion is None:
            return self.original_base(override)
        original = self.original_base(override) if override else None
        if self.expansion.found(self.path) is None:
            self.expansion.made(self.path, original or self.original_base())
        folder = self.expansion.found(self.path)
        assert folder is not None
        check_fits(self.path, self.modules, folder)
        check_holds(folder, self.renderer)
        return folder

    def original_base(self, override: str | None = None) -> Path:
        """Local folder of the base model as it was before training quantised it, checked by its digest."""
        folder = resolve_base(override, near=self.path) if override else self._own_base()
        if self.base["sha256"] and base_digest(folder) != self.base["sha256"]:
            raise AdapterError(
                f"{folder} is not the base model that adapter {self.digest[:12]} was trained on; "
                "train on this base, or name the right one with --base-model"
            )
        check_fits(self.path, self.modules, folder)
        check_holds(folder, self.renderer)
        return folder

    def _own_base(self) -> Path:
        """Where the manifest says; what was a folder is found where it was, and never looked up on a hub."""
        ref, was = self.base["ref"], self.manifest.get(BASE_FOLDER)
        if local := local_folder(ref, near=self.path) or (
            local_folder(was) if isinstance(was, str) else None
        ):
            return resolve_base(str(local))
        if was is not None:
            raise AdapterError(f"no base model at {ref}, nor at {was}; name its folder with --base-model")
        return resolve_base(ref, self.base["revision"])

    def fits(self, base: Path) -> bool:
        """Whether its weights are for `base`, whatever its manifest says."""
        try:
            check_fits(self.path, self.modules, base)
        except AdapterError:
            return False
        return True


def _names_base(base: Mapping[str, Any]) -> bool:
    """`ref` is a text, `revision` and `sha256` are texts or null."""
    names = ("ref", "revision", "sha256")
    texts = all(name in base and isinstance(base[name], str | None) for name in names)
    return texts and bool(base["ref"])


def _is_table(value: Any) -> bool:
    """Whether what is read from it by name can be: an object whose objects are objects."""
    return isinstance(value, dict) and not any(isinstance(each, list) for each in value.values())


def seal_bundle(folder: Path, facts: Mapping[str, Any]) -> str:
    """Seal a finished bundle: hash every file, write `manifest.json` last. Returns the bundle's digest."""
    files = {}
    for file in sorted(folder.iterdir()):
        if file.name != MANIFEST and file.name not in HUB:
            file.chmod(0o644)  # safetensors' files are their maker's alone, and a service reads these
            files[file.name] = file_digest(file)
    manifest = {**facts, "files": files}
    write_file(folder / MANIFEST, pretty_json(manifest))
    return bundle_digest(files)
