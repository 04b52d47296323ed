"""The manifest of an output: written last, so where it exists, the run is complete.

OUTPUT.parquet, OUTPUT.parquet.manifest.json             one file
OUTPUT/part-….parquet, OUTPUT/manifest.json, _SUCCESS    a folder of parts, as the manifest names them
"""

import dataclasses
import re
from typing import Any

import pyarrow as pa

from batch.contract.json_text import as_json, parse_json, pretty_json
from batch.errors import BatchRouteError, StorageError
from batch.storage.location import Location, reason, refused_or_failed, storage_error
from batch.storage.object_store import written_meanwhile
from batch.storage.store import store_at

MOST_BYTES = 64 << 20  # a larger file is not one of our manifests


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

    def as_json(self) -> dict[str, Any]:
        facts = dataclasses.asdict(self)
        return {name: value for name, value in facts.items() if value is not None}


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


def write_manifest(
    output: str, job: dict[str, Any], proof: Proof, replaces: str | None = None, **facts: Any
) -> None:
    """Declare `output` complete: `job` is the fingerprint's facts, `facts` is what else there is to say.

    Raises `StorageError`, also where the manifest that lies there is not the version `replaces`: it is then
    of another run, whose output must not be taken for this one's.
    """
    manifest = {"job": job, "output": proof.as_json(), **facts}
    location = manifest_location(output)
    store_at(location.folder).replace(location.base, pretty_json(manifest), replaces)


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
    except (FileNotFoundError, KeyError, TypeError):
        return None
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(location, error) from error


def read_manifest(location: Location) -> dict[str, Any] | None:
    """The manifest that lies there, or None where there is none of ours: a run starts and replaces it.

    Raises `InputError`, `StorageError`.
    """
    try:
        with location.filesystem.open_input_file(location.path) as stream:
            return _ours(parse_json(stream.read())) if stream.size() <= MOST_BYTES else None
    except (FileNotFoundError, ValueError):
        return None
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(location, error) from error


def _ours(content: Any) -> dict[str, Any] | None:
    """`content` if it has a manifest's parts, each of its kind."""
    if not isinstance(content, dict):
        return None
    job, output, run = (content.get(part) for part in ("job", "output", "run"))
    whole = isinstance(job, dict) and isinstance(output, dict) and isinstance(output.get("sha256"), str)
    return content if whole and (run is None or isinstance(run, dict)) else None


def _unreadable(location: Location, error: BaseException) -> BatchRouteError:
    what, remedy = f"cannot read {location.name}", "move it away, or choose another output"
    if isinstance(error, OSError):
        return refused_or_failed(what, error, remedy)
    return StorageError(f"{what}: {reason(error)}; run again to resume")
