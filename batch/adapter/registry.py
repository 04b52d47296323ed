"""The registry: bundles by digest under one folder, and the aliases that name them."""

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from batch.adapter.bundle import MANIFEST, Bundle
from batch.errors import AdapterError, nearest
from batch.storage.location import write_file


class Registry:
    """Bundles by digest under one folder, and aliases (small files) that name them. `$BATCH_ROUTE_ADAPTERS`
    moves it.
    """

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
