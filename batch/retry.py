"""`--retry-errors`: of a finished output, the rows in error are run again; every other row stays, value for
value.

Such a run reads the finished output in the input's place and goes through the same units and the same
proof. The old output and its manifest stay until the new ones replace them.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch.contract.json_text import as_json
from batch.errors import InputError
from batch.job import Job, work_dir_of
from batch.scoring.lane import TEXT_ERRORS
from batch.scoring.scorer import Chunk, read_texts
from batch.storage.location import Location
from batch.storage.manifest import finished, is_folder, manifest_location, output_files, read_manifest
from batch.storage.parquet import ParquetSource
from batch.storage.schema import taken
from batch.storage.workdir import changes, job_in

RETRY_OF = "retry_of"  # fact of a job that retries errors: sha256 of the output that they are in


class Retry:
    """The finished output of a job as a :class:`batch.source.Source`: it asks for the rows in error."""

    repeats = True

    def __init__(self, job: Job, manifest: dict[str, Any] | None, sha256: str, asks: int) -> None:
        self._job, self._manifest, self._sha256 = job, manifest, sha256
        self._inputs = len(job.backlog.schema)  # columns of the input, in front
        self._prefix = job.options.prefix
        self.facts, self.asks = {**job.facts, RETRY_OF: sha256}, asks

    @classmethod
    def of(cls, job: Job) -> Self:
        """Where the output has no manifest, a retry was perhaps stopped between the old one's removal and the
        new one; then its work is complete. (A folder's stays until the new one.) Raises `InputError` where
        neither is so.
        """
        output = job.options.output
        manifest = finished(output, _facts_then(job))
        if manifest is not None:
            errors = manifest["run"]["tally"]["errors"]
            asks = sum(count for code, count in errors.items() if code not in TEXT_ERRORS)
            return cls(job, manifest, manifest["output"]["sha256"], asks)
        live = job_in(work_dir_of(job.options)) or {}
        sha256 = live.pop(RETRY_OF, None)
        if sha256 is None or live != as_json(job.facts) or is_folder(output):
            raise InputError(
                f"--retry-errors needs the finished output of this same job: {_why(output, job.facts)}; "
                "run without it"
            )
        return cls(job, None, sha256, 0)

    def finished(self) -> dict[str, Any] | None:
        return None if self.asks else self._manifest

    def batches(self, start: int, size: int) -> Iterator[pa.RecordBatch]:
        """The finished output's rows from `start` on, in batches of at most `size` rows."""
        output = Location.of(self._job.options.output)
        if self._manifest is None and output.sha256() != self._sha256:
            raise InputError(
                f"{output.name} has changed since its errors began to be retried; run without "
                "--retry-errors and with --fresh"
            )
        for location in output_files(self._job.options.output, self._manifest or {}):
            file = ParquetSource.open(location)
            if start < file.rows:
                yield from file.batches(start, size, schema=self._job.schema)
            start = max(0, start - file.rows)

    def chunk(self, batch: pa.RecordBatch) -> Chunk:
        wrong = np.flatnonzero(self._mask(batch).to_numpy(zero_copy_only=False))
        given = batch.select(range(self._inputs))
        asked = pa.RecordBatch.from_arrays(
            [taken(column, pa.array(wrong)) for column in given.columns], schema=given.schema
        )
        order = np.arange(batch.num_rows)  # of the old answers and, behind them, the new ones
        order[wrong] = batch.num_rows + np.arange(len(wrong))

        def complete(new: pa.RecordBatch) -> pa.RecordBatch:
            """`batch` with the answers of `new` in place of its errors."""
            answers = zip(batch.columns[self._inputs :], new.columns[self._inputs :], strict=True)
            # `replace_with_mask` has no kernel for lists.
            merged = [pa.concat_arrays([old, fresh]).take(pa.array(order)) for old, fresh in answers]
            return pa.RecordBatch.from_arrays(
                [*batch.columns[: self._inputs], *merged], schema=self._job.schema
            )

        return Chunk(asked, complete, self._violations(batch))

    def _violations(self, batch: pa.RecordBatch) -> Counter[str]:
        """Broken rules of the rows of `batch` that stay: the output does not keep them, so the model's own
        answers are checked anew."""
        names = [name for name in batch.schema.names[self._inputs :] if name.startswith(self._prefix)]
        rows = batch.select(names).rename_columns([name.removeprefix(self._prefix) for name in names])
        texts, _ = read_texts(batch, self._job.options.text_column)
        broken: Counter[str] = Counter()
        for row, text, bundle in zip(rows.to_pylist(), texts, self._job.adapters.rows(batch), strict=True):
            if bundle and row["status"] == "ok":
                own = {field.name: row[f"{field.name}_model"] for field in bundle.contract.enforced_fields}
                broken.update(bundle.contract.violations(bundle.contract.read({**row, **own}), text or ""))
        return broken

    def _mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        codes = batch.column(self._prefix + "error_code")
        of_text = pc.is_in(codes, pa.array(sorted(TEXT_ERRORS)))
        return pc.and_(codes.is_valid(), pc.invert(of_text))


def _facts_then(job: Job) -> dict[str, Any]:
    """The facts of this job when its output was made: adapters of rows may be there by now that were not,
    unless their answers need columns that the output lacks.
    """
    facts: dict[str, Any] = as_json(job.facts)
    manifest = read_manifest(manifest_location(job.options.output))
    if "adapters" in facts and manifest and manifest["output"]["columns"] == job.schema.names:
        then = manifest["job"].get("adapters", {})
        lacked = {name for name, digest in then.items() if digest is None}
        facts["adapters"] |= dict.fromkeys(lacked & facts["adapters"].keys())
    return facts


def _why(output: str, job: dict[str, Any]) -> str:
    name, manifest = Location.of(output).name, read_manifest(manifest_location(output))
    if manifest is None:
        return f"{name} has no manifest, or one that is damaged or was edited"
    other = changes(manifest["job"], as_json(job))
    return f"{name} is another job's ({other})" if other else f"{name} is not as its manifest says"
