"""The adapter bundle: a plain PEFT adapter folder that carries its contract, tokenizer and proof; and the registry.

A bundle is `adapter_model.safetensors` and `adapter_config.json` (PEFT's own files) with `contract.json`, the base's
tokenizer files, metrics, calibration and a card. `manifest.json`, written last, holds the sha256 of every other
file; the bundle's digest is the sha256 of that list. Serving reads the contract and the tokenizer from here, so it
cannot drift from training.
"""

import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from batch.calibration import Calibration
from batch.contract import Contract
from batch.errors import AdapterError, nearest
from batch.files import write_file
from batch.lint import check_fits, lint, no_remote_code, read_json
from batch.tokens import TOKENIZER_FILES, Renderer

MANIFEST = "manifest.json"
REQUIRED = ("adapter_model.safetensors", "adapter_config.json", "contract.json", "metrics.json", "calibration.json")
FORBIDDEN_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".py"}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A verified adapter bundle. :meth:`open` is the only way to get one."""

    path: Path
    digest: str  # sha256, 64 hex digits
    contract: Contract
    renderer: Renderer
    rank: int
    calibration: Calibration
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Verify every file's digest, lint the adapter, compile the contract. Raises `AdapterError`."""
        path = Path(path)
        manifest = read_json(path / MANIFEST, "an adapter bundle (its manifest is written last: was training finished?)")
        digests = manifest.get("files")
        if not isinstance(digests, dict):
            raise AdapterError(f"{path}: {MANIFEST} has no list of files; train the adapter again")
        base = manifest.get("base")
        if not isinstance(base, dict) or not {"ref", "revision", "sha256"} <= set(base):
            raise AdapterError(f"{path}: {MANIFEST} does not say which base model it is for; train the adapter again")
        for name in REQUIRED:
            if name not in digests:
                raise AdapterError(f"{path}: {MANIFEST} does not list {name}; train the adapter again")
        present = {file.name for file in path.iterdir()} - {MANIFEST}
        if strange := sorted(name for name in present if Path(name).suffix.lower() in FORBIDDEN_SUFFIXES):
            raise AdapterError(f"{path}: holds {strange[0]}; only safetensors and data files are ever loaded, remove it")
        if unlisted := sorted(present - set(digests)):
            raise AdapterError(f"{path}: {unlisted[0]} is not in {MANIFEST}; remove it or copy the bundle again")
        for name, digest in digests.items():
            if Path(name).name != name or not (path / name).is_file():
                raise AdapterError(f"{path}: {name} is missing; copy the bundle again")
            if file_digest(path / name) != digest:
                raise AdapterError(f"{path}: {name} differs from its sha256 in {MANIFEST}; copy the bundle again")
        no_remote_code(path)
        rank = lint(path)
        contract = Contract.load(path / "contract.json")
        renderer = Renderer.load(path, contract)
        calibration = Calibration.load(path / "calibration.json", contract)
        return cls(path, bundle_digest(digests), contract, renderer, rank, calibration, manifest)

    @property
    def base(self) -> Mapping[str, Any]:
        """The base model it was trained on: `ref`, `revision`, `sha256`."""
        base: Mapping[str, Any] = self.manifest["base"]
        return base

    @property
    def lora_modules(self) -> tuple[str, ...] | None:
        """Names of the layers that the adapter changes; None where its config gives a pattern."""
        modules = read_json(self.path / "adapter_config.json", "a PEFT adapter").get("target_modules")
        return tuple(sorted(modules)) if isinstance(modules, list) else None

    def resolve_base(self, override: str | None = None) -> Path:
        """Local folder of the base model, checked to be the one trained on. Raises `AdapterError`.

        An override is for the same weights at another place; other weights are refused.
        """
        folder = resolve_base(override or self.base["ref"], None if override else self.base["revision"], near=self.path)
        if self.base["sha256"] and base_digest(folder) != self.base["sha256"]:
            raise AdapterError(
                f"{folder} is not the base model that adapter {self.digest[:12]} was trained on; "
                "train on this base, or name the right one with --base-model"
            )
        check_fits(self.path, folder)
        return folder


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> str:
    """Seal a finished bundle: hash every file, write `manifest.json` last. Returns the bundle's digest."""
    files = {file.name: file_digest(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    manifest = {**facts, "files": files}
    write_file(folder / MANIFEST, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
    return bundle_digest(files)


def bundle_digest(files: Mapping[str, str]) -> str:
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_tokenizer(base: Path, bundle: Path) -> None:
    """Snapshot the base's tokenizer and chat template into a bundle."""
    for name in TOKENIZER_FILES:
        if (base / name).exists():
            shutil.copyfile(base / name, bundle / name)


def resolve_base(ref: str, revision: str | None = None, near: Path | None = None) -> Path:
    """Local folder of a base model named by a folder or a hub id. Raises `AdapterError`.

    A relative folder is looked for under the current directory, then under the folders above `near`. A hub id is
    looked up in the local hub cache; set `BATCH_ROUTE_ONLINE=1` to let it be downloaded (safetensors only).
    """
    for root in (Path(), *(near.resolve().parents if near else ())):
        if (root / ref / "config.json").is_file():
            return _checked_base(root / ref)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", ref) or ref.startswith("."):
        raise AdapterError(f"no base model at {ref}; give a model folder or a hub id with --base-model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    online = os.environ.get("BATCH_ROUTE_ONLINE") == "1"
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
    try:
        return _checked_base(Path(snapshot_download(ref, revision=revision, local_files_only=not online, allow_patterns=wanted)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        remedy = "check the name and the network" if online else "set BATCH_ROUTE_ONLINE=1 to download it once, or give a folder"
        raise AdapterError(f"base model {ref} at revision {revision or 'main'} is not here; {remedy}") from error


def _checked_base(folder: Path) -> Path:
    read_json(folder / "config.json", "a model folder")
    no_remote_code(folder)
    if not any(folder.glob("*.safetensors")):
        raise AdapterError(f"{folder}: holds no safetensors; convert the weights, other formats are never loaded")
    return folder


def base_digest(folder: Path) -> str:
    """sha256 over a base model's config and weights."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return bundle_digest({file.name: file_digest(file) for file in files})


class Registry:
    """Bundles by digest under one folder, and aliases (small files) that name them. `$BATCH_ROUTE_ADAPTERS` moves it."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("BATCH_ROUTE_ADAPTERS") or "adapters")

    def staging(self) -> Path:
        """A fresh folder to build a bundle in, on the registry's own filesystem."""
        folder = self.root / f".building-{secrets.token_hex(6)}"
        folder.mkdir(parents=True)
        return folder

    def add(self, folder: Path) -> Bundle:
        """Verify a sealed bundle and move it in under its digest. The same bundle twice is one."""
        bundle = Bundle.open(folder)
        home = self.root / bundle.digest
        if home.exists():
            shutil.rmtree(folder)
        else:
            folder.rename(home)
        return Bundle.open(home)

    def resolve(self, ref: str) -> Path:
        """Folder of the bundle that `ref` names: a directory, an alias, or a digest or its unique start."""
        if (Path(ref) / MANIFEST).is_file():
            return Path(ref)
        aliases = self.aliases()
        if ref in aliases:
            return self.root / aliases[ref]
        if re.fullmatch(r"[0-9a-f]{6,64}", ref):
            found = [path for path in self._homes() if path.name.startswith(ref)]
            if len(found) == 1:
                return found[0]
            if found:
                raise AdapterError(f"{len(found)} adapters start with {ref}; give more digits")
        if ref == "champion":
            raise AdapterError(f"no adapter in {self.root}/ yet; run `make train` or give one with --adapter")
        hint = nearest(ref, list(aliases)) or "; `batch-train adapters` lists those there are"
        raise AdapterError(f"no adapter {ref!r}: not a bundle directory, digest or alias{hint}")

    def aliases(self) -> dict[str, str]:
        """Alias → digest."""
        files = sorted((self.root / "aliases").glob("*"))
        return {file.name: file.read_text().strip() for file in files if not file.name.startswith(".")}

    def set_alias(self, alias: str, digest: str) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", alias):
            raise AdapterError(f"alias {alias!r}: use lower-case letters, digits, dashes and underscores")
        (self.root / "aliases").mkdir(parents=True, exist_ok=True)
        write_file(self.root / "aliases" / alias, f"{digest}\n".encode())

    def list(self) -> list[Bundle]:
        return [Bundle.open(path) for path in self._homes()]

    def _homes(self) -> Sequence[Path]:
        return sorted(p for p in self.root.glob("*") if re.fullmatch(r"[0-9a-f]{64}", p.name))
