"""The main path: a Parquet backlog → scored Parquet.

check everything cheap → start the engine → read, route, commit shards → assemble, prove, manifest
"""

import contextlib
import dataclasses
import functools
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import pyarrow as pa
from rich.console import Console

from batch import __version__
from batch.bundle import Bundle, Registry
from batch.engine import AdapterSpec, EngineSpec, adapter_spec
from batch.engine.process import EngineProcess
from batch.errors import BatchRouteError, InputError
from batch.files import Place, check_writable
from batch.ledger import Ledger
from batch.manifest import Proof, finished, write_manifest
from batch.reader import IdDigest
from batch.router import INVALID_UTF8, Counts, Router, ScoredRow
from batch.summary import Summary, Tally, shard_tally, with_tally
from batch.table import Backlog, assemble, output_columns, output_schema

FEED_ROWS = 256  # rows tokenised and handed to the engine at a time
WINDOW = 4  # requests with the engine at most, in multiples of what it runs at once: it never waits for more
SHARD_ROWS = 16_384  # a shard is committed after so many rows or
PLAN_SAMPLE = 1000  # requests that a dry run tokenises
SHARD_SECONDS = 10.0  # so many seconds, whichever comes first: what a stop can cost


class Interrupted(BatchRouteError):
    """SIGINT or SIGTERM: what is done is kept, the exit code is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted; run again to resume")
        self.exit_code = 128 + number


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks for; `batch-route --help` says what each means."""

    input: str
    output: str
    adapter: str = "champion"
    base_model: str | None = None
    id_column: str = "id"
    text_column: str = "request"
    prefix: str = ""
    limit: int | None = None
    max_error_rate: float = 0.01
    fresh: bool = False
    work_dir: Path | None = None
    engine: Literal["vllm", "replay"] = "vllm"
    max_num_seqs: int | None = None
    dtype: str | None = None
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """A run whose inputs are all checked: nothing expensive has happened yet."""

    options: Options
    bundle: Bundle
    base: Path
    backlog: Backlog
    rows: int
    schema: pa.Schema
    id_digest: str
    facts: dict[str, Any]  # what must be the same for a later run to resume this one


Progress = Callable[[Counts, int], None]  # (counts of this run, rows in all, resumed ones left out)


def check(options: Options) -> Job:
    """Everything that can be refused before an engine starts is refused here (exit 2)."""
    check_writable(options.output)
    bundle = Bundle.open(Registry().resolve(options.adapter))
    base = bundle.resolve_base(options.base_model)
    added = output_columns(bundle.contract, options.prefix)
    backlog = Backlog.open(options.input, options.id_column, options.text_column, added)
    if Place.of(options.output).path in {file.place.path for file in backlog.files}:
        raise InputError(f"output {options.output} is one of the input's files; choose another name")
    if not Place.of(options.output).local and options.work_dir is None:
        raise InputError("the output is remote, unfinished work is kept on this machine: name a directory with --work-dir")
    id_digest = backlog.check_ids()
    facts = {
        "version": __version__,
        "input": backlog.identity(),
        "ids": id_digest,
        "id_column": options.id_column,
        "text_column": options.text_column,
        "prefix": options.prefix,
        "limit": options.limit,
        "adapter": bundle.digest,
        "contract": bundle.contract.fingerprint,
        "renderer": bundle.renderer.fingerprint,
        "base": dict(bundle.base),
        "engine": options.engine,
        "dtype": options.dtype,
    }
    schema = output_schema(backlog.schema, bundle.contract, options.prefix)
    job = Job(options, bundle, base, backlog, backlog.rows, schema, id_digest, facts)
    if options.limit is None or options.limit >= backlog.rows:
        return job
    job = dataclasses.replace(job, rows=options.limit)
    digest = IdDigest()
    for batch in _batches(job, 0):
        digest.update(batch.column(options.id_column))
    return dataclasses.replace(job, id_digest=digest.hexdigest())


def run(options: Options, progress: Progress | None = None) -> Summary:
    """Route a backlog. Raises a `BatchRouteError`; whatever stops it, a rerun resumes from the last shard."""
    started = time.monotonic()
    job = check(options)
    work_dir = options.work_dir or _hidden_beside(options.output)
    if not options.fresh and (manifest := finished(options.output, job.facts)):
        if work_dir.exists():  # killed after the manifest, before the work directory went
            Ledger.open(work_dir, job.facts, fresh=True).finish()
        return Summary.of_manifest(manifest)
    summary = Summary()
    with Ledger.open(work_dir, job.facts, options.fresh, options.output) as ledger:
        summary.resumed_rows = ledger.done_rows
        if ledger.done_rows < job.rows:
            with _signals_raise(), start_engine(job) as engine:
                _route(job, ledger, engine, summary, progress, started)
        proof = _assemble(job, ledger, summary)
        summary.seconds = time.monotonic() - started
        write_manifest(options.output, job.facts, proof, run=summary.as_json())
        ledger.finish()
    return summary


def _hidden_beside(output: str) -> Path:
    """Hidden, so that a directory read as input does not include it."""
    path = Path(output)
    return path.with_name(f".{path.name}.work")


def start_engine(job: Job) -> EngineProcess:
    """Start the engine's process and return at once; it loads while the parent goes on."""
    options, renderer = job.options, job.bundle.renderer
    return EngineProcess(
        EngineSpec(
            kind=options.engine,
            base=str(job.base),
            tokenizer=str(job.bundle.path),
            max_model_len=renderer.max_model_len,
            max_lora_rank=job.bundle.rank,
            max_num_seqs=options.max_num_seqs,
            dtype=options.dtype,
            threads=options.threads,
        )
    )


def spec_of(bundle: Bundle) -> AdapterSpec:
    return adapter_spec(bundle.digest, str(bundle.path), bundle.contract, bundle.renderer)


def _route(job: Job, ledger: Ledger, engine: EngineProcess, summary: Summary, progress: Progress | None, started: float) -> None:
    adapter = spec_of(job.bundle)
    canary = engine.load(adapter)
    summary.engine = {**engine.facts, "canary": canary}
    begun = time.monotonic()

    def on_progress(counts: Counts) -> None:
        if summary.seconds_to_first_row is None and counts.inferred:
            summary.seconds_to_first_row = time.monotonic() - started
        if progress:
            progress(counts, job.rows - summary.resumed_rows)

    window = WINDOW * engine.facts["max_num_seqs"]
    router = Router(engine, adapter, job.bundle.contract, job.bundle.renderer, window, on_progress)
    summary.counts = router.counts
    inputs: deque[pa.RecordBatch] = deque()  # read ahead of the engine, waiting for their scores

    def texts() -> Iterator[Sequence[Any]]:
        for batch in _batches(job, ledger.done_rows):
            inputs.append(batch)
            values, invalid = job.backlog.texts(batch)
            yield [INVALID_UTF8 if i in invalid else text for i, text in enumerate(values)] if invalid else values

    shard = _Shard(job, ledger)
    try:
        for rows in router.route(texts()):
            shard.add(inputs.popleft(), rows)
    finally:
        shard.commit()  # also when interrupted: what is done is kept
        summary.routing_seconds = time.monotonic() - begun


class _Shard:
    """Finished rows that are not yet durable."""

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self._job, self._ledger = job, ledger
        self._clear()

    def add(self, batch: pa.RecordBatch, rows: Sequence[ScoredRow]) -> None:
        self._batches.append(_output_batch(self._job, batch, rows))
        self._violations.update(name for row in rows for name in row.violations)
        self._rows += len(rows)
        if self._rows >= SHARD_ROWS or time.monotonic() - self._since > SHARD_SECONDS:
            self.commit()

    def commit(self) -> None:
        batches, violations = self._batches, self._violations
        self._clear()  # first: were a signal to come in between, rows must be redone rather than be there twice
        if batches:
            table = pa.Table.from_batches(batches, self._job.schema)
            self._ledger.commit(with_tally(table, self._job.bundle.contract, self._job.options.prefix, violations))

    def _clear(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._violations: Counter[str] = Counter()
        self._rows, self._since = 0, time.monotonic()


def _batches(job: Job, start: int) -> Iterator[pa.RecordBatch]:
    left = job.rows - start
    for batch in job.backlog.batches(start, FEED_ROWS):
        if left <= 0:
            return
        yield batch.slice(0, left)
        left -= batch.num_rows


def _output_batch(job: Job, batch: pa.RecordBatch, rows: Sequence[ScoredRow]) -> pa.RecordBatch:
    """The input's columns as they are, then the answer, its scores and the row's status, in the schema's order."""
    contract = job.bundle.contract
    answers = [row.answer or {} for row in rows]
    scores = [row.scores or {} for row in rows]
    products = [_product(row.scores) for row in rows]
    columns = [[answer.get(field.name) for answer in answers] for field in contract.fields]
    columns += [[score.get(field.name) for score in scores] for field in contract.scored_fields]
    columns += [products, ["error" if row.error_code else "ok" for row in rows]]
    columns += [[row.error_code for row in rows], [row.error for row in rows], [job.bundle.digest] * len(rows)]
    added = list(job.schema)[batch.num_columns :]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, added, strict=True)]
    return pa.RecordBatch.from_arrays([*batch.columns, *arrays], schema=job.schema)


def _product(scores: dict[str, float] | None) -> float | None:
    if scores is None:
        return None
    product = 1.0
    for score in scores.values():
        product *= score
    return product


def _assemble(job: Job, ledger: Ledger, summary: Summary) -> Proof:
    """Write the output from the shards, prove it against the input, and add up the shards' tallies."""
    metadata = {
        "batch_route.version": __version__,
        "batch_route.adapter": job.bundle.digest,
        "batch_route.contract": job.bundle.contract.fingerprint,
        "batch_route.engine": job.options.engine,
    }
    summary.tally = sum((shard_tally(shard) for shard in ledger.shards), Tally())
    return assemble(ledger.shards, job.options.output, job.schema, metadata, job.options.id_column, (job.rows, job.id_digest))


def show_plan(job: Job, console: Console) -> None:
    """What `--dry-run` prints: everything known without an engine."""
    renderer, sample = job.bundle.renderer, []
    for batch in _batches(job, 0):
        sample += [text for text in job.backlog.texts(batch)[0] if text]
        if len(sample) >= PLAN_SAMPLE:
            break
    say = functools.partial(console.print, soft_wrap=True)
    lengths = [len(ids) for ids in renderer.encode_requests(sample)]
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    fixed = len(renderer.prefix_ids) + len(renderer.suffix_ids)
    say(f"input      {job.backlog.source}: {job.rows} rows to route, ids unique, every page readable")
    say(f"adapter    {job.bundle.digest[:12]} ({job.bundle.contract.name}) on base {job.bundle.base['ref']}")
    say(f"prompt     {fixed} tokens of instructions, cached, and {mean:.0f} a request (mean of {len(lengths)})")
    say(f"tokens     about {mean * job.rows:.0f} of requests, at most {renderer.max_answer_tokens} of answer a row")
    rates = ", ".join(f"{job.rows / rate / 60:.1f} min at {rate} rows/s" for rate in (10, 50, 500))
    say(f"time       {rates}; an earlier run's manifest has this machine's rate")


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted`, so that the finished rows are committed on the way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not cut the last commit
        raise Interrupted(number)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
