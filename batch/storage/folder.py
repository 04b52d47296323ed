"""A folder as output: the parts under their final names, then `manifest.json`, then `_SUCCESS`.

The parts of one job have its fingerprint in their names, so they lie beside those of the output that they
replace until the manifest speaks of them; then the older ones go.
"""

import contextlib
import os
import shutil
from pathlib import Path

from batch.storage.location import Location, replacing, storage_error
from batch.storage.manifest import OUTPUT_PART, Proof
from batch.storage.receipts import Receipts

SUCCESS = "_SUCCESS"


def publish(
    receipts: Receipts, output: str, fingerprint: str, id_column: str, expect: tuple[int, str]
) -> Proof:
    """Prove the parts and give them their final names. Raises `StorageError`."""
    folder = Path(Location.of(output).path)
    proof = receipts.prove(fingerprint, id_column, expect)
    try:
        folder.mkdir(exist_ok=True)
        (folder / SUCCESS).unlink(missing_ok=True)  # what it speaks of changes now
        for receipt, part in zip(receipts, proof.parts or (), strict=True):
            _place(Path(receipts.store.location(receipt.part).path), folder / part.name)
        Location.of(folder / SUCCESS).sync_folder()
    except OSError as error:
        raise storage_error(output, error) from error
    return proof


def seal(output: str, proof: Proof) -> None:
    """After the manifest: remove parts that it does not name, and say that the folder is whole. Raises
    `StorageError`.
    """
    folder = Path(Location.of(output).path)
    named = {part.name for part in proof.parts or ()}
    try:
        for path in folder.iterdir():
            if OUTPUT_PART.fullmatch(path.name) and path.name not in named:
                path.unlink()
        (folder / SUCCESS).touch()
        Location.of(folder / SUCCESS).sync_folder()
    except OSError as error:
        raise storage_error(output, error) from error


def _place(part: Path, path: Path) -> None:
    """The same file under another name, whole at once; a copy where the two lie on different disks."""
    with contextlib.suppress(FileNotFoundError):
        if path.samefile(part):
            return
        path.unlink()
    try:
        os.link(part, path)
    except OSError:
        with replacing(Location.of(path)) as temporary:
            shutil.copyfile(part, temporary.path)
