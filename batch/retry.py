"""`--retry-errors`: of a finished output, the rows in error are run again; every other row stays, value for
value.

Such a run reads the finished output in the input's place and goes through the same shards, assembly and
proof. The old output and its manifest stay until the new ones replace them.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch.adapter.bundle import Bundle
from batch.errors import InputError
from batch.scoring.lane import TEXT_ERRORS
from batch.storage.ledger import RETRY_OF, changes, live_facts
from batch.storage.location import Location
from batch.storage.manifest import manifest_location, read_manifest
from batch.storage.parquet import ParquetSource


@dataclasses.dataclass(frozen=True)
class Retry:
    """The finished output of a job, whose error rows are run again."""

    output: str
    sha256: str
    rows: int  # to run again
    inputs: int  # columns of the input, in front
    prefix: str

    @classmethod
    def of(
        cls, output: str, job: dict[str, Any], manifest: dict[str, Any] | None, work_dir: Path, inputs: int
    ) -> "Retry":
        """`manifest` is that of the finished output of this very `job` (its facts), if there is one.

        Where there is none, a retry was perhaps stopped between the old manifest's removal and the new one;
        then its work is complete. Raises `InputError` where neither is so.
        """
        if manifest is not None:
            errors = manifest["run"]["tally"]["errors"]
            rows = sum(count for code, count in errors.items() if code not in TEXT_ERRORS)
            return cls(output, manifest["output"]["sha256"], rows, inputs, job["prefix"])
        live = live_facts(work_dir) or {}
        sha256 = live.pop(RETRY_OF, None)
        if sha256 is None or live != json.loads(json.dumps(job)):
            raise InputError(
                f"--retry-errors needs the finished output of this same job: {_why(output, job)}; "
                "run without it"
            )
        return cls(output, sha256, 0, inputs, job["prefix"])

    def batches(self, start: int, size: int) -> Iterator[pa.RecordBatch]:
        """The finished output's rows, as :meth:`batch.storage.backlog.Backlog.batches` gives the input's."""
        location = Location.of(self.output)
        if location.sha256() != self.sha256:
            raise InputError(
                f"{location.name} has changed since its errors began to be retried; run without "
                "--retry-errors and with --fresh"
            )
        yield from ParquetSource.open(location).batches(start, size)

    def again(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The input's columns of those rows of `batch` that are run again."""
        return batch.select(range(self.inputs)).filter(self._mask(batch))

    def merged(self, batch: pa.RecordBatch, new: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with the answers of `new`, the outcome of :meth:`again`, in place of its errors."""
        mask = self._mask(batch)
        answers = zip(batch.columns[self.inputs :], new.columns[self.inputs :], strict=True)
        arrays = [
            *batch.columns[: self.inputs],
            *(pc.replace_with_mask(old, mask, fresh) for old, fresh in answers),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)

    def violations(
        self, batch: pa.RecordBatch, texts: Sequence[str | None], bundles: Sequence[Bundle | None]
    ) -> Counter[str]:
        """Broken rules of the rows of `batch` that stay: the output does not keep them, so the model's own
        answers are checked anew."""
        names = [name for name in batch.schema.names[self.inputs :] if name.startswith(self.prefix)]
        rows = (
            batch.select(names).rename_columns([name.removeprefix(self.prefix) for name in names]).to_pylist()
        )
        broken: Counter[str] = Counter()
        for row, text, bundle in zip(rows, texts, bundles, strict=True):
            if bundle and row["status"] == "ok":
                own = {field.name: row[f"{field.name}_model"] for field in bundle.contract.enforced_fields}
                broken.update(bundle.contract.violations({**row, **own}, text or ""))
        return broken

    def _mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        codes = batch.column(self.prefix + "error_code")
        of_text = pc.is_in(codes, pa.array(sorted(TEXT_ERRORS)))
        return pc.and_(codes.is_valid(), pc.invert(of_text))


def _why(output: str, job: dict[str, Any]) -> str:
    name = Location.of(output).name
    manifest = read_manifest(manifest_location(output))
    if manifest is None:
        return f"{name} has no manifest"
    other = changes(manifest["job"], json.loads(json.dumps(job)))
    return f"{name} is another's ({other})" if other else f"{name} is not as its manifest says"
