"""What makes an output whole beside its rows and its manifest: the names of its parts, `_SUCCESS`, and that
nothing of other jobs is left.

    OUT/part-….parquet                  on a file system: the parts under their final names
    OUT/_parts/<fingerprint>/…          in an object store: parts where they were written, and receipts
    OUT/_parts/plan.json                the plan of the job whose shards began last
    .OUT.parquet.work/…                 in an object store: the same of a single file, until it is whole

The parts of one job have its fingerprint in their names, so they lie beside those of the output that they
replace until the manifest speaks of them; then the older ones go. In a store receipts stay beside the parts:
a writer that comes late finds them, and takes back what it wrote. Nothing is locked there, so what is of
neither job stays: others may be at work on it, or have published it meanwhile.
"""

import contextlib
import dataclasses
import re
import secrets
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from batch.storage.digest import bundle_digest
from batch.storage.location import Location, is_local, storage_error
from batch.storage.manifest import (
    OUTPUT_PART,
    SUCCESS,
    PartProof,
    Proof,
    is_folder,
    is_own_part,
    manifest_version,
)
from batch.storage.output import prove, write_rows
from batch.storage.receipts import AT_ONCE, Receipts, part_name
from batch.storage.store import LocalStore, Store, remove_partials, store_at
from batch.storage.workdir import ATTEMPTS, PLAN, RECEIPTS, SHARDS, fingerprint
from batch.storage.written_plan import WrittenPlan

PARTS = "_parts"
KINDS = f"{SHARDS}|{RECEIPTS}|{ATTEMPTS}"
IN_STORE = re.compile(rf"({PARTS}|\..*\.work)/(?:{re.escape(PLAN)}|([0-9a-f]{{64}})/({KINDS})/[^/]*)")


def jobs_folder(output: str) -> Location:
    """Where unfinished jobs lie whose output is in an object store."""
    location = Location.of(output)
    return location.inside(PARTS) if is_folder(output) else location.sibling(".", ".work")


def plan_store(output: str, work: Path) -> Store:
    """Where the plan lies of what several processes score: in the output's object store, or else with the
    rest of the unfinished work, in the folder `work`.
    """
    return LocalStore(work) if is_local(output) else store_at(jobs_folder(output), work)


def job_store(output: str, work: Path, fingerprint: str) -> Store:
    """The same of the parts and receipts of a job; then files on their way to the store are in `work`."""
    return LocalStore(work) if is_local(output) else store_at(jobs_folder(output).inside(fingerprint), work)


def publish(
    receipts: Receipts,
    output: str,
    schema: pa.Schema,
    id_column: str,
    expect: tuple[int, str],
    older: Collection[str] = (),
) -> Proof:
    """Prove the parts and give them their places, with the mode and owner of the `older` output's parts.
    Raises `StorageError`.
    """
    folder, written = Location.of(output), [receipt.part for receipt in receipts]
    like = folder.inside(min(older)).status() if older else None
    proof = receipts.prove(receipts.job, id_column, expect)
    try:
        if not written:
            name, proof = _no_rows(receipts, proof, schema, id_column)
            written.append(name)
        store_at(folder).remove(SUCCESS)  # what it speaks of changes now
        parts = tuple(
            dataclasses.replace(part, name=receipts.store.lay_out(name, folder, part.name, like))
            for name, part in zip(written, proof.parts or (), strict=True)
        )
        folder.inside(SUCCESS).sync_folder()
    except OSError as error:
        raise storage_error(output, error) from error
    listing = bundle_digest({part.name: part.sha256 for part in parts})
    return dataclasses.replace(proof, sha256=listing, parts=parts)


def _no_rows(receipts: Receipts, proof: Proof, schema: pa.Schema, id_column: str) -> tuple[str, Proof]:
    """A part of no rows, from which readers take the columns, and the proof with it."""
    name = part_name(0, secrets.token_hex(8))
    with receipts.store.writing(name) as file:
        write_rows(file, (), schema)
    with receipts.store.at_hand(name) as file:
        found = prove(file, id_column)
    part = PartProof(f"part-00000-{receipts.job[:8]}.parquet", 0, found.ids, found.sha256, found.bytes)
    return name, dataclasses.replace(proof, bytes=found.bytes, columns=found.columns, parts=(part,))


def still_there(output: str, proof: Proof) -> bool:
    """Whether what was proved lies there yet: in a store others may have written or removed it meanwhile.
    Raises `StorageError`.
    """
    location = Location.of(output)
    if location.local:
        return True
    if not is_folder(output):
        with contextlib.suppress(FileNotFoundError):
            return location.stamp()[1] == proof.stamp
        return False
    store = store_at(location)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return all(pool.map(lambda part: store.intact(part.name, part.bytes, part.sha256), proof.parts or ()))


def seal(
    output: str, parts: Iterable[str], job: str, version: str | None, older: Collection[str] = ()
) -> None:
    """After the manifest, which names `parts`: remove what else the `job` (its fingerprint) left, and what is
    of the `older` output, which an earlier manifest named or which says itself that a run wrote it, and say
    that a folder is whole. Ends as soon as the manifest is not the `version` that speaks of the job. Raises
    `StorageError`.
    """
    location, kept = Location.of(output), set(parts)
    store = store_at(location if is_folder(output) else location.folder)
    within = "" if is_folder(output) else location.sibling(".", ".work").base
    plan = WrittenPlan.read(store_at(jobs_folder(output)))
    planned = fingerprint(plan.facts) if plan else None
    gone = {stored[2] for stored in map(IN_STORE.fullmatch, older) if stored} - {planned}

    def goes(name: str) -> bool:
        if stored := IN_STORE.fullmatch(name):
            owner, kind = stored.groups()[1:]
            if owner == job:
                return not (is_folder(output) and kind == RECEIPTS)
            return owner in gone if owner else planned == job
        part = is_folder(output) and OUTPUT_PART.fullmatch(name)
        return bool(part) and (name in older or is_own_part(location, name))

    try:
        for name in store.names(within):
            if name in kept or not goes(name):
                continue
            if manifest_version(output) != version:
                return
            store.remove(name)
        if location.local and is_folder(output):
            remove_partials(Path(location.path))
        if is_folder(output):
            store.replace(SUCCESS, b"", store.version(SUCCESS))
    except OSError as error:
        raise storage_error(output, error) from error
