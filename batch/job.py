"""A job: what the command line asks for, and what of it is checked before anything expensive happens."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from batch import __version__
from batch.adapter.registry import Registry
from batch.engine.process import PATIENCE
from batch.errors import InputError
from batch.retry import Retry
from batch.scoring.adapters import Adapters
from batch.storage.backlog import Backlog
from batch.storage.location import Location, check_writable
from batch.storage.output import output_columns, output_schema
from batch.storage.parquet import IdDigest

FEED_ROWS = 256  # rows tokenised and handed to the engine at a time


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks for; `batch-route --help` says what each means."""

    input: str
    output: str
    adapter: str = "champion"
    adapter_column: str | None = None
    base_model: str | None = None
    id_column: str = "id"
    text_column: str = "request"
    prefix: str = ""
    limit: int | None = None
    max_error_rate: float = 0.01
    retry_errors: bool = False
    fresh: bool = False
    work_dir: Path | None = None
    cache: Path | None = None
    cache_max: int = 1 << 30  # bytes
    engine_timeout: float = PATIENCE  # seconds
    engine: Literal["vllm", "replay"] = "vllm"
    max_num_seqs: int | None = None
    dtype: str | None = None
    threads: int | None = None
    draft_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """A run whose inputs are all checked: nothing expensive has happened yet."""

    options: Options
    adapters: Adapters
    base: Path
    backlog: Backlog
    rows: int
    schema: pa.Schema
    id_digest: str
    facts: dict[str, Any]  # what must be the same for a later run to resume this one
    retry: Retry | None = None  # with --retry-errors: the finished output, read in the backlog's place


def check(options: Options) -> Job:
    """Everything that can be refused before an engine starts is refused here (exit 2)."""
    check_writable(options.output)
    backlog = Backlog.open(options.input, options.id_column, options.text_column)
    adapters = Adapters.of(Registry(), options.adapter, options.adapter_column, backlog)
    base, answers = adapters.default.resolve_base(options.base_model), adapters.answers
    backlog.refuse_columns(output_columns(answers, options.prefix, answers.triage))
    if Location.of(options.output).path in {file.location.path for file in backlog.files}:
        raise InputError(f"output {options.output} is one of the input's files; choose another name")
    if not Location.of(options.output).local and options.work_dir is None:
        raise InputError(
            "the output is remote, unfinished work is kept on this machine: name a directory with --work-dir"
        )
    id_digest = backlog.check_ids()
    facts = {
        "version": __version__,
        "input": backlog.identity(),
        "ids": id_digest,
        "id_column": options.id_column,
        "text_column": options.text_column,
        "prefix": options.prefix,
        "limit": options.limit,
        **adapters.facts(),
        "engine": options.engine,
        "dtype": options.dtype,
    }
    schema = output_schema(backlog.schema, answers, options.prefix, answers.triage)
    job = Job(options, adapters, base, backlog, backlog.rows, schema, id_digest, facts)
    if options.limit is None or options.limit >= backlog.rows:
        return job
    job = dataclasses.replace(job, rows=options.limit)
    digest = IdDigest()
    for batch in read_batches(job, 0):
        digest.update(batch.column(options.id_column))
    return dataclasses.replace(job, id_digest=digest.hexdigest())


def read_batches(job: Job, start: int) -> Iterator[pa.RecordBatch]:
    """The job's rows from `start` on, in batches of at most `FEED_ROWS`."""
    left = job.rows - start
    for batch in (job.retry or job.backlog).batches(start, FEED_ROWS):
        if left <= 0:
            return
        yield batch.slice(0, left)
        left -= batch.num_rows


def work_dir_of(options: Options) -> Path:
    """By default beside the output, and hidden, so that a directory read as input does not include it."""
    path = Path(options.output)
    return options.work_dir or path.with_name(f".{path.name}.work")
