"""batch-route from Python: `route` a backlog, or keep a `Scorer` and hand it tables.

These names, and the exceptions, are public; `batch` and `train` are the programs' own and may change.
"""

from batch import __version__
from batch.errors import (
    AdapterError,
    BatchRouteError,
    ContractError,
    EngineError,
    InputError,
    OutputLockedError,
    StorageError,
)
from batch.reporting.summary import Summary
from batch_route.scorer import Scorer

__all__ = [
    "AdapterError",
    "BatchRouteError",
    "ContractError",
    "EngineError",
    "InputError",
    "OutputLockedError",
    "Scorer",
    "StorageError",
    "Summary",
    "__version__",
    "route",
]


def route(input: str, output: str, **options: object) -> Summary:
    """Classify a backlog of Parquet and write it, scored, to `output`: what `batch-route INPUT OUTPUT` does.

    `options` are the command's, with underscores: `route("in.parquet", "out.parquet", adapter="champion",
    text_column="body", limit=1000)`. A run that was cut off is resumed. Returns the run's summary:
    `summary.tally` counts rows, errors by code and values by field. Row errors raise nothing; they are in the
    output.

    Works in any thread. In the main thread SIGTERM and SIGINT stop it cleanly, with a `KeyboardInterrupt`.

    Raises `BatchRouteError`: `InputError`, `AdapterError`, `ContractError` for what would be refused again,
    `OutputLockedError` where another run holds the output, `EngineError` and `StorageError` for what a rerun
    may mend. Raises `TypeError` for an unknown option.
    """
    from batch.job import Options
    from batch.run import run

    return run(Options(str(input), str(output), **options))  # type: ignore[arg-type]
