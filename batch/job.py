"""A job: what the command line asks for, and what of it is checked before anything expensive happens."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from batch import __version__
from batch.adapter.base_model import check_divides
from batch.adapter.registry import Registry
from batch.engine import DEFAULT_ENGINE, ENGINES
from batch.engine.process import PATIENCE
from batch.errors import AdapterError, BacklogError, InputError
from batch.launch.devices import placements
from batch.launch.ray import check_asked
from batch.scoring.adapters import Adapters, Answers
from batch.scoring.score import SCORING
from batch.storage.backlog import Backlog
from batch.storage.hashing import IdDigest
from batch.storage.manifest import own_version
from batch.storage.output import FIXED, output_columns, output_schema
from batch.storage.places import Places, check_output, refuse_inputs, refuse_inside
from batch.storage.workdir import work_dir
from batch.storage.writability import check_can_be_written
from batch.storage.written_plan import WrittenPlan


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
    reasons: Literal["all", "human", "none"] = "all"
    cache: Path | None = None
    cache_max: int = 1 << 30  # bytes
    deadline: float | None = None  # seconds
    engine_timeout: float = PATIENCE  # seconds
    engine: str = DEFAULT_ENGINE
    max_num_seqs: int | None = None
    dtype: str | None = None
    threads: int | None = None
    devices: str | None = None
    tensor_parallel: int = 1
    draft_tokens: int | None = None
    shard: tuple[int, int] | None = None  # (I, N): units I, I + N, … only
    ray: str | None = None  # address of a cluster

    @property
    def folders(self) -> Places:
        return {"--work-dir": self.work_dir, "--cache": self.cache}


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
    replaces: str | None  # the version of the output's manifest that this run may replace


def kept_folders(options: Options, registry: Registry | None = None) -> Places:
    """In which no report or metrics may lie: they could be written over what a run needs."""
    registry, adapter = registry or Registry(), None
    with contextlib.suppress(AdapterError, OSError):  # told where it is opened
        adapter = registry.resolve(options.adapter)
    return {**options.folders, "the registry": registry.root, "the adapter": adapter}


def refuse_kept(options: Options, registry: Registry | None = None) -> None:
    """Refuse an output, cache or work folder among the adapters: `InputError`."""
    kept = {**kept_folders(options, registry), **dict.fromkeys(options.folders)}
    refuse_inside({"output": options.output, **options.folders}, kept)


def refuse_together(options: Options) -> None:
    """Refuse options that exclude each other: `InputError`."""
    if options.tensor_parallel > 1 and options.draft_tokens:
        raise InputError("--draft-tokens and --tensor-parallel exclude each other; leave one of them out")
    if options.ray is not None and options.retry_errors:
        raise InputError("--retry-errors has few rows to score: leave out --ray")
    whole = {
        "--fresh": options.fresh,
        "--retry-errors": options.retry_errors,
        "--ray": options.ray is not None,
    }
    for option, given in whole.items():
        if given and options.shard:
            raise InputError(f"{option} is for a whole run and does not go with --shard; leave it out")


@contextlib.contextmanager
def of_the_backlog() -> Iterator[None]:
    """A fault of the input's own in the block: `BacklogError`."""
    try:
        yield
    except InputError as error:
        raise BacklogError(str(error)) from error


def check(options: Options, registry: Registry | None = None, written: WrittenPlan | None = None) -> Job:
    """Everything that can be refused before an engine starts is refused here (exit 2). A backlog that was
    read through for the plan that is `written` is not read through again.
    """
    if options.engine not in ENGINES:
        raise InputError(f"--engine {options.engine} is not one of {', '.join(ENGINES)}")
    if options.ray is None:
        placements(options.devices, options.threads, options.tensor_parallel)
    else:
        check_asked(options.ray, options.devices)
    refuse_together(options)
    registry = registry or Registry()
    refuse_kept(options, registry)
    check_output(options.input, options.output, options.folders)
    replaces = own_version(options.output)
    with of_the_backlog():
        fixed = [options.prefix + name for name in FIXED]
        backlog = Backlog.open(options.input, options.id_column, options.text_column, fixed)
        check_can_be_written(backlog.schema)
        names = options.id_column, options.text_column
        id_digest = written.ids_of(backlog.identity(), *names) if written else None
        # first: this process reads only what the child has read before
        id_digest = id_digest or backlog.check_ids()
        adapters = Adapters.of(registry, options.adapter, options.adapter_column, backlog)
    base = adapters.default.resolve_base(options.base_model)
    refuse_inside({"output": options.output, **options.folders}, {"the base model": base})
    check_divides(base, options.tensor_parallel)

    def check_columns(answers: Answers) -> None:
        backlog.refuse_columns(output_columns(answers, options.prefix, answers.triage))

    adapters = adapters.together(base, options.reasons, check_columns)
    answers = adapters.answers
    refuse_inputs(options.output, [file.location for file in backlog.files])
    facts = {
        "version": __version__,
        "scoring": SCORING,
        "input": backlog.identity(),
        "ids": id_digest,
        "id_column": options.id_column,
        "text_column": options.text_column,
        "prefix": options.prefix,
        "limit": options.limit,
        **adapters.facts(),
        "reasons": options.reasons,
        "engine": options.engine,
        "dtype": options.dtype,
    }
    schema = output_schema(backlog.schema, answers, options.prefix, answers.triage)
    rows = backlog.rows
    if options.limit is not None and options.limit < rows:
        rows, digest = options.limit, IdDigest()
        for batch in backlog.batches(stop_row=rows, columns=[options.id_column]):
            digest.update(batch.column(0))
        id_digest = digest.hexdigest()
    return Job(options, adapters, base, backlog, rows, schema, id_digest, facts, replaces)


def work_dir_of(options: Options) -> Path:
    return work_dir(options.output, options.work_dir)
