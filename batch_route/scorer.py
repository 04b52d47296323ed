"""One warm engine with one adapter, for tables that are in memory already."""

from types import TracebackType
from typing import Any, Self, TypeVar

import pyarrow as pa

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.engine.supervisor import Supervisor
from batch.errors import InputError, nearest
from batch.scoring.adapters import Adapters, engine_spec
from batch.scoring.scorer import Chunk, load_first
from batch.scoring.scorer import Scorer as Scoring
from batch.storage.output import output_columns, output_schema
from batch.storage.schema import is_text

Table = TypeVar("Table")  # pyarrow.Table, polars.DataFrame or pandas.DataFrame


class Scorer:
    """Scores tables with an adapter. Use it as a context manager: its engine is a process that holds the GPU.

    with Scorer("champion") as scorer:
        scored = scorer.score(frame, text_column="body")
    """

    def __init__(
        self,
        adapter: str = "champion",
        *,
        base_model: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        max_num_seqs: int | None = None,
        engine: str = "vllm",
    ) -> None:
        """Open the adapter (a bundle's folder, digest or alias) and start its engine, which loads meanwhile.

        Raises `AdapterError` for a bundle or base that is refused.
        """
        self._bundle = Bundle.open(Registry().resolve(adapter))
        base = self._bundle.resolve_base(base_model)
        choices: dict[str, Any] = {"dtype": dtype, "threads": threads, "max_num_seqs": max_num_seqs}
        self._adapters = Adapters(self._bundle)
        self._spec = engine_spec(base, [self._bundle], kind=engine, **choices)
        self._engine = Supervisor(self._spec)
        self._scorer: Scoring | None = None
        self._cut_off = False  # in the middle of a call, whose requests the engine has

    @property
    def adapter(self) -> str:
        """The bundle's digest: what the output's column `adapter` holds."""
        return self._bundle.digest

    def score(self, table: Table, *, text_column: str = "request", prefix: str = "") -> Table:
        """`table` with the columns that `batch-route` adds, of the same kind as it came: Arrow, Polars or
        pandas.

        Rows keep their order. A row that cannot be scored has `status` error and its `error_code`; nothing is
        raised for it. After a call that was interrupted the next one starts the engine anew. Raises
        `InputError` for a table without that column or with one of the new columns, `EngineError` when the
        engine does not recover.
        """
        kind = type(table).__module__.partition(".")[0]
        if kind == "polars":
            import polars as pl

            return pl.from_arrow(self._score(table.to_arrow(), text_column, prefix))  # type: ignore[attr-defined,return-value]
        if kind == "pandas":
            arrow = pa.Table.from_pandas(table)  # the index travels in the schema's metadata
            made = self._score(arrow, text_column, prefix)
            return made.replace_schema_metadata(arrow.schema.metadata).to_pandas()  # type: ignore[no-any-return]
        if isinstance(table, pa.Table):
            return self._score(table, text_column, prefix)  # type: ignore[no-any-return]
        raise InputError(f"cannot score a {type(table).__name__}; give a table of Arrow, Polars or pandas")

    def _score(self, table: pa.Table, text_column: str, prefix: str) -> pa.Table:
        self._refuse(table, text_column, prefix)
        if self._cut_off:
            self.close()
            self._engine, self._scorer = Supervisor(self._spec), None
        self._cut_off = True
        if self._scorer is None:
            load_first(self._engine, self._adapters)
            self._scorer = Scoring(self._engine, self._adapters, self._engine.facts["max_num_seqs"])
        answers = self._adapters.answers
        schema = output_schema(table.schema, answers, prefix, answers.triage)
        size = self._scorer.feed_rows
        chunks = (Chunk(_one_chunk(table.slice(start, size))) for start in range(0, table.num_rows, size))
        made = [scored.batch for scored in self._scorer.score(chunks, text_column, schema)]
        self._cut_off = False
        return pa.Table.from_batches(made, schema)

    def _refuse(self, table: pa.Table, text_column: str, prefix: str) -> None:
        names = table.schema.names
        if text_column not in names:
            raise InputError(
                f"the table has no column {text_column!r}{nearest(text_column, names)}; name one "
                "with text_column="
            )
        kind = table.schema.field(text_column).type
        if not is_text(kind):
            raise InputError(
                f"column {text_column!r} holds {kind}, not texts; name another with text_column="
            )
        answers = self._adapters.answers
        added = output_columns(answers, prefix, answers.triage)
        if taken := [name for name in added if name in names]:
            raise InputError(f"the table has a column {taken[0]!r} already; give a prefix= for the new ones")

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _one_chunk(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]
