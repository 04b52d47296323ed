"""batch-route from Python: `route` a backlog, or keep a `Scorer` and hand it tables.

These names, and the exceptions, are public; `batch` and `train` are the programs' own and may change.
"""

from collections.abc import Mapping
from typing import Any

from batch import __version__
from batch.errors import (
    AdapterError,
    BatchRouteError,
    ContractError,
    EngineError,
    InputError,
    OutputLockedError,
    StorageError,
    UnfinishedError,
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
    "UnfinishedError",
    "__version__",
    "commit",
    "route",
]


def route(input: str, output: str, **options: object) -> Summary:
    """Classify a backlog of Parquet and write it, scored, to `output`: what `batch-route INPUT OUTPUT` does.

    `options` are the command's, with underscores: `route("in.parquet", "out.parquet", adapter="champion",
    text_column="body", limit=1000)`. A value is the text that the command takes, or what it means: seconds
    for `deadline`, bytes for `cache_max`, a pair for `shard`. A run that was cut off is resumed. Returns the
    run's summary: `summary.tally` counts rows, errors by code and values by field. Row errors raise nothing;
    they are in the output.

    Works in any thread. In the main thread SIGTERM and SIGINT stop it cleanly, with a `KeyboardInterrupt`.

    Raises `BatchRouteError`: `InputError`, `AdapterError`, `ContractError` for what would be refused again,
    `OutputLockedError` where another run holds the output, `EngineError` and `StorageError` for what a rerun
    may mend. Raises `TypeError` for an unknown option.
    """
    from batch.job import Options
    from batch.reporting.observer import Observer
    from batch.run import run
    from batch.shard import score_shard

    wanted = Options(str(input), str(output), **_as_the_command_has_them(options))
    if wanted.shard is None:
        return run(wanted)
    observer = Observer()
    score_shard(wanted, observer)
    return observer.summary


def _as_the_command_has_them(options: Mapping[str, object]) -> dict[str, Any]:
    """Checked and converted as on the command line. Raises `InputError`."""
    import click

    from batch.cli import main

    known = {option.name: option for option in main.params}
    made: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            made[name] = value  # who takes no such option says so
        elif value is not None:
            try:
                spelt = _spelt(name, value, getattr(known[name], "is_flag", False))
                made[name] = known[name].type_cast_value(click.Context(main), spelt)
            except (click.BadParameter, TypeError, ValueError, OverflowError) as error:
                told = error.message if isinstance(error, click.BadParameter) else str(error)
                raise InputError(f"{name}={value!r}: {told}") from error
    return made


def _spelt(name: str, value: object, is_flag: bool) -> object:
    """An option's value as one would write it behind the command; a path and a flag are taken as they are."""
    if isinstance(value, tuple | list):
        return "/".join(map(str, value))
    if isinstance(value, int | float) and not is_flag:
        return str(int(value)) if name in ("deadline", "cache_max") else str(value)
    return value


def commit(output: str, work_dir: str | None = None) -> Summary:
    """Prove and publish what calls of `route` with `shard=(0, 4)` to `(3, 4)` have scored for `output`.

    Raises `UnfinishedError` where units are missing, `InputError` where there is nothing to publish or the
    input has changed, `OutputLockedError` while a shard is at work. Again it changes nothing.
    """
    from pathlib import Path

    from batch.commit import commit
    from batch.reporting.observer import Observer

    return commit(str(output), Path(work_dir) if work_dir else None, 1.0, Observer())
