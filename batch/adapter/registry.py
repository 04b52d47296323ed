"""The registry: bundles by digest under one folder, and the aliases that name them."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from batch.adapter.bundle import MANIFEST, Bundle
from batch.errors import AdapterError, BatchRouteError, nearest
from batch.storage.location import write_file
from batch.storage.lock import Lock

ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")
KEPT = 16  # opened bundles that a registry remembers
PATIENCE = 120.0  # seconds to wait for another command's change


def check_alias(alias: str) -> None:
    """For before the work whose result gets it. Raises `AdapterError` where no registry would take it."""
    if not ALIAS.fullmatch(alias):
        raise AdapterError(
            f"alias {alias!r}: use lower-case letters, digits, dashes and underscores, 64 at most, "
            "and begin with a letter"
        )


class Registry:
    """Bundles by digest under one folder, and aliases (small files) that name them. `$BATCH_ROUTE_ADAPTERS`
    moves it.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("BATCH_ROUTE_ADAPTERS") or "adapters")
        self._opened: dict[Path, tuple[object, Bundle]] = {}  # the latest last

    def staging(self) -> Path:
        """A fresh folder to build a bundle in, on the registry's own filesystem."""
        folder = self.root / f".building-{secrets.token_hex(6)}"
        folder.mkdir(parents=True)
        return folder

    def add(self, folder: Path) -> Bundle:
        """Verify a sealed bundle and move it in under its digest. The same bundle twice is one."""
        bundle = Bundle.open(folder)
        home = self.root / bundle.digest
        with self.locked():
            try:
                present = Bundle.open(home)
            except AdapterError:  # none, or a damaged one: this one takes its place
                if home.exists():
                    home.rename(self.root / f".damaged-{secrets.token_hex(6)}")
                folder.rename(home)
                return Bundle.open(home)
        shutil.rmtree(folder)
        return present

    def locked(self) -> contextlib.AbstractContextManager[object]:
        """The registry's one lock, for what reads it and then changes it. Raises `OutputLockedError`."""
        self.root.mkdir(parents=True, exist_ok=True)
        return Lock.take(self.root / ".lock", str(self.root), PATIENCE)

    def open(self, ref: str, entries_only: bool = False) -> Bundle:
        """The verified bundle that `ref` names; it is read again only if a file of it has changed."""
        path = self.resolve(ref, entries_only)
        stamps = _stamps(path)
        kept = self._opened.pop(path, None)
        bundle = kept[1] if kept and kept[0] == stamps else Bundle.open(path)
        self._opened[path] = stamps, bundle
        while len(self._opened) > KEPT:
            del self._opened[next(iter(self._opened))]
        return bundle

    def resolve(self, ref: str, entries_only: bool = False) -> Path:
        """Folder of the bundle that `ref` names: an alias, a digest or its unique start, or, unless only the
        registry's own `entries_only` are asked for, a directory.
        """
        if not entries_only and _is_bundle(ref):
            return Path(ref)
        aliases = self.aliases()
        if ref in aliases:
            return self.root / aliases[ref]
        if ALIAS.fullmatch(ref) and os.path.lexists(alias := self.root / "aliases" / ref):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                alias.read_bytes()  # what this user may not read is not damaged
            raise AdapterError(
                f"alias {ref} in {self.root}/ is damaged: it names no digest; promote an adapter again"
            )
        if re.fullmatch(r"[0-9a-f]{6,64}", ref):
            found = [path for path in self._homes() if path.name.startswith(ref)]
            if len(found) == 1:
                return found[0]
            if found:
                raise AdapterError(f"{len(found)} adapters start with {ref}; give more digits")
        if ref == "champion":
            raise AdapterError(f"no adapter in {self.root}/ yet; run `make train` or give one with --adapter")
        hint = nearest(ref[:100], list(aliases)) or "; `batch-train adapters` lists them"
        raise AdapterError(f"no adapter {ref[:100]!r}: not a bundle directory, digest or alias{hint}")

    def aliases(self) -> dict[str, str]:
        """Alias → digest. What is not an alias (a folder, somebody's file) is left out."""
        found = {}
        folder, names = self.root / "aliases", list[str]()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names = sorted(os.listdir(folder))
        for file in map(folder.joinpath, names):
            with contextlib.suppress(IsADirectoryError, FileNotFoundError, PermissionError, ValueError):
                if ALIAS.fullmatch(file.name) and file.is_file():
                    digest = file.read_text(encoding="ascii").strip()
                    if DIGEST.fullmatch(digest):
                        found[file.name] = digest
        return found

    def set_alias(self, alias: str, digest: str) -> None:
        check_alias(alias)
        (self.root / "aliases").mkdir(parents=True, exist_ok=True)
        write_file(self.root / "aliases" / alias, f"{digest}\n".encode())

    def list(self) -> list[Bundle]:
        """The sound bundles."""
        return [bundle for bundle in self.survey().values() if isinstance(bundle, Bundle)]

    def survey(self) -> dict[str, Bundle | BatchRouteError]:
        """Every bundle by the digest that its folder is named by, or what is wrong with it."""
        found: dict[str, Bundle | BatchRouteError] = {}
        for path in self._homes():
            try:
                found[path.name] = Bundle.open(path)
            except BatchRouteError as error:  # its contract may be what is wrong
                found[path.name] = error
        return found

    def _homes(self) -> Sequence[Path]:
        return sorted(path for path in self.root.glob("*") if DIGEST.fullmatch(path.name))


def _is_bundle(ref: str) -> bool:
    try:
        return (Path(ref) / MANIFEST).is_file()
    except (OSError, ValueError):  # too long for a path, or not one at all
        return False


def _stamps(path: Path) -> dict[str, tuple[int, int, int]]:
    """What changes when a file of a folder does. Raises `AdapterError`."""
    try:
        found = {file.name: file.stat() for file in path.iterdir()}
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror}; copy the bundle again") from error
    return {name: (each.st_ino, each.st_size, each.st_mtime_ns) for name, each in found.items()}
