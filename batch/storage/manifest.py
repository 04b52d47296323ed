"""OUTPUT.manifest.json: written last, so where it exists, the run is complete."""

import dataclasses
import json
from typing import Any

import pyarrow as pa

from batch.errors import StorageError
from batch.storage.location import Location, storage_error, write_file


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a finished output was found to hold when it was read back."""

    rows: int
    ids: str  # sha256 of the ids in order
    sha256: str  # of the file
    bytes: int


def manifest_location(output: str) -> Location:
    return Location.of(output).sibling("", ".manifest.json")


def write_manifest(output: str, job: dict[str, Any], proof: Proof, **facts: Any) -> None:
    """Declare `output` complete: `job` is the fingerprint's facts, `facts` is what else there is to say.

    Raises `StorageError`.
    """
    manifest = {"job": job, "output": dataclasses.asdict(proof), **facts}
    write_file(
        manifest_location(output), (json.dumps(manifest, ensure_ascii=False, indent=2) + "\n").encode()
    )


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
    if manifest is None or manifest["job"] != json.loads(json.dumps(job)):
        return None
    location = Location.of(output)
    try:
        return manifest if location.sha256() == manifest["output"]["sha256"] else None
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot read {location.name}: {error}; run again to resume") from error


def read_manifest(location: Location) -> dict[str, Any] | None:
    """The manifest that lies there, or None where there is none of ours: a run starts and replaces it.

    Raises `StorageError`.
    """
    try:
        with location.filesystem.open_input_stream(location.path) as stream:
            manifest = json.loads(stream.read())
        known = (
            all(isinstance(manifest[part], dict) for part in ("job", "output"))
            and "sha256" in manifest["output"]
        )
        return manifest if known else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot read {location.name}: {error}; run again to resume") from error
