"""OUTPUT.manifest.json: written last, so where it exists, the run is complete."""

import dataclasses
from typing import Any

import pyarrow as pa

from batch.contract.json_text import as_json, parse_json, pretty_json
from batch.errors import BatchRouteError, StorageError
from batch.storage.location import Location, reason, refused_or_failed, storage_error, write_file

MOST_BYTES = 64 << 20  # a file that holds more is no manifest of ours


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a finished output was found to hold when it was read back."""

    rows: int
    ids: str  # sha256 of the ids in order
    sha256: str  # of the file
    bytes: int
    columns: tuple[str, ...] = ()  # their names, as they were read back


def manifest_location(output: str) -> Location:
    return Location.of(output).sibling("", ".manifest.json")


def write_manifest(output: str, job: dict[str, Any], proof: Proof, **facts: Any) -> None:
    """Declare `output` complete: `job` is the fingerprint's facts, `facts` is what else there is to say.

    Raises `StorageError`.
    """
    manifest = {"job": job, "output": dataclasses.asdict(proof), **facts}
    write_file(manifest_location(output), pretty_json(manifest))


def remove_manifest(output: str) -> None:
    """Raises `StorageError`."""
    location = manifest_location(output)
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
    try:
        return manifest if location.sha256() == manifest["output"]["sha256"] else None
    except FileNotFoundError:
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
