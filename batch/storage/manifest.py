"""The manifest of an output: written last, so where it exists, the run is complete.

OUTPUT.parquet, OUTPUT.parquet.manifest.json             one file
OUTPUT/part-….parquet, OUTPUT/manifest.json, _SUCCESS    a folder of parts, as the manifest names them

A manifest that is not as a run wrote it proves nothing: its output counts as one that is not finished.
"""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch.contract.json_text import as_json, fits, parse_json, pretty_json
from batch.errors import BatchRouteError, InputError, StorageError
from batch.storage.location import Location, Status, reason, refused_or_failed, storage_error
from batch.storage.object_store import written_meanwhile
from batch.storage.records import DIGEST, JOB, NUMBER, TALLY, sealed, unsealed
from batch.storage.store import store_at

MOST_BYTES = 64 << 20  # a larger file is not one of our manifests, nor a larger footer one of our parts'
WRITER = b"batch_route.version"  # in the footer of every file that a run wrote
OURS = {"job": dict, "output": dict, DIGEST: str}, {"job": dict, "output": {"sha256": str}}
BEGINNING = b'{\n  "job": {'  # of each
FILE = {"rows": int, "ids": str, "sha256": str, "bytes": int}
MEASURE = {"field": str, "of": str, "psi": NUMBER, "by_chance": NUMBER, "level": str}
EARLIER = {"output": str, "sha256": str, "tally": TALLY}
MANIFEST = {  # what is read of it
    "job": JOB,
    "output": {**FILE, "columns": [str], "parts?": [{**FILE, "name": str}]},
    "run": {
        "id": str,
        "finished_at": str,
        "input": {"columns": [str], "notes": [str]},
        "tally": TALLY,
        "thresholds": {str: NUMBER},
        "resumed_rows": int,
        "rows_per_second": (NUMBER, None),
        "seconds": NUMBER,
        "engine": dict,
        "pace": {str: int},
    },
    "drift": (None, {"previous": EARLIER, "measures": [MEASURE]}),
}


@dataclasses.dataclass(frozen=True)
class PartProof:
    """One file of a folder."""

    name: str
    rows: int
    ids: str  # sha256 of its ids in order
    sha256: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a finished output was found to hold when it was read back."""

    rows: int
    ids: str  # sha256 of the ids in order
    sha256: str  # of the file; of a folder, that of its parts' names and digests
    bytes: int
    columns: tuple[str, ...] = ()  # their names, as they were read back
    parts: tuple[PartProof, ...] | None = None  # of a folder, in order
    stamp: int | str | None = None  # of the file that was read, as `Location.stamp` has it; not written down

    def as_json(self) -> dict[str, Any]:
        facts = dataclasses.asdict(self)
        return {name: value for name, value in facts.items() if value is not None and name != "stamp"}


SUCCESS = "_SUCCESS"  # an empty file in a folder that is whole
OUTPUT_PART = re.compile(r"part-\d{5,}-[0-9a-f]{8}\.parquet")  # the name of a file of a folder


def is_folder(output: str) -> bool:
    """Whether an OUTPUT is a folder of parts rather than one file."""
    return not output.endswith(".parquet")


def manifest_location(output: str) -> Location:
    if is_folder(output):
        return Location.of(output).inside("manifest.json")
    return Location.of(output).sibling("", ".manifest.json")


def part_names(manifest: dict[str, Any]) -> list[str]:
    """The parts of a folder, as its manifest names them; of a file, none."""
    return [part["name"] for part in manifest["output"].get("parts", ())]


def named_parts(output: str) -> set[str]:
    """The parts that the manifest names which lies there, if one of ours does. Raises what
    :func:`read_manifest` raises.
    """
    manifest = read_manifest(manifest_location(output))
    return set(part_names(manifest)) if manifest else set()


def is_own_part(folder: Location, name: str) -> bool:
    """Whether a file of a folder has a part's name, and says in its Parquet footer that a run wrote it."""
    if not OUTPUT_PART.fullmatch(name):
        return False
    try:
        with folder.inside(name).open() as file:
            end = file.size() - 8  # the footer's length and the mark `PAR1` follow it
            length = int.from_bytes(file.read_at(4, end), "little")
            return 0 < length <= min(end, MOST_BYTES) and WRITER in file.read_at(length, end - length)
    except (OSError, ValueError, pa.ArrowException):  # a folder, or shorter than that
        return False


def output_files(output: str, manifest: dict[str, Any]) -> list[Location]:
    """The Parquet files of a finished output, in order."""
    location = Location.of(output)
    if not is_folder(output):
        return [location]
    return [location.inside(name) for name in part_names(manifest)]


def manifest_version(output: str) -> str | None:
    """What changes when the manifest does; None where there is none. Raises `StorageError`."""
    location = manifest_location(output)
    return store_at(location.folder).version(location.base)


def own_version(output: str) -> str | None:
    """The same, of a manifest that a run wrote. Raises `InputError` where another file has its name, which a
    run would replace, `StorageError`.
    """
    location = manifest_location(output)
    version = manifest_version(output)
    if version and not _is_ours(_read(location)):
        what = f"{location.name} is no manifest of batch-route and would be written over"
        raise InputError(f"{what}; move it away, or choose another output")
    return version


def write_manifest(
    output: str,
    job: dict[str, Any],
    proof: Proof,
    replaces: str | None = None,
    like: Status = None,
    **facts: Any,
) -> None:
    """Declare `output` complete: `job` is the fingerprint's facts, `facts` is what else there is to say. Its
    mode and owner are those of the manifest that lies there, or those in `like`.

    Raises `StorageError`, also where the manifest that lies there is not the version `replaces`: it is then
    of another run, whose output must not be taken for this one's.
    """
    manifest = sealed({"job": job, "output": proof.as_json(), **facts})
    location = manifest_location(output)
    store_at(location.folder).replace(location.base, pretty_json(manifest), replaces, like)


def remove_manifest(output: str, replaces: str | None) -> None:
    """Raises `StorageError`, also where another run has written one since the version `replaces`."""
    location = manifest_location(output)
    if manifest_version(output) != replaces:
        raise written_meanwhile(location.name)
    try:
        location.remove()
    except (OSError, pa.ArrowException) as error:
        raise storage_error(location.name, error) from error


def finished(output: str, job: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest, if `output` is the complete result of this very job and its bytes are still those
    recorded.
    """
    manifest = read_manifest(manifest_location(output))
    if manifest is None or manifest["job"] != as_json(job):
        return None
    location = Location.of(output)
    told = manifest["output"].get("parts", [manifest["output"]])
    try:
        found = [file.sha256() for file in output_files(output, manifest)]
        return manifest if found == [each["sha256"] for each in told] else None
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(location, error) from error


def read_manifest(location: Location) -> dict[str, Any] | None:
    """The manifest that lies there, or None where there is none, or none that is as a run wrote it.

    Raises `InputError`, `StorageError`.
    """
    with contextlib.suppress(ValueError):
        return unsealed(_read(location), MANIFEST)
    return None


def whole_manifest(output: str) -> dict[str, Any]:
    """The manifest of a finished output. Raises `InputError` where there is none or it is damaged."""
    name, data = Location.of(output).name, _read(manifest_location(output))
    if not data:
        raise InputError(f"{name} has no manifest, so it is not complete; run batch-route again")
    try:
        return unsealed(data, MANIFEST)
    except ValueError as error:
        what = f"{name}: its manifest is damaged or was edited and proves nothing"
        raise InputError(f"{what}; run batch-route again") from error


def _read(location: Location) -> bytes:
    """Nothing where there is no file, and of one too large its beginning."""
    if location.local and Path(location.path).is_fifo():  # it would be waited for, for ever
        raise InputError(f"{location.name} is a pipe; move it away, or choose another output")
    try:
        with location.filesystem.open_input_file(location.path) as stream:
            return bytes(stream.read(MOST_BYTES))
    except FileNotFoundError:
        return b""
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(location, error) from error


def _is_ours(data: bytes) -> bool:
    """Whether these are a manifest's bytes, damaged or cut off or not, and no other program's file; nothing
    at all, as a power cut leaves it, is nobody's.
    """
    try:
        return not data.strip(b"\0") or fits(parse_json(data), OURS)
    except ValueError:
        return data.startswith(BEGINNING)


def _unreadable(location: Location, error: BaseException) -> BatchRouteError:
    what, remedy = f"cannot read {location.name}", "move it away, or choose another output"
    if isinstance(error, OSError):
        return refused_or_failed(what, error, remedy)
    return StorageError(f"{what}: {reason(error)}; run again to resume")
