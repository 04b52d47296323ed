"""Every error that a user can meet, with the exit code it ends in.

    BatchRouteError                     2
    ├── InputError                      2    the backlog or an option is refused; nothing was written
    ├── ConfigError                     2    a training config is refused
    ├── ContractError                   2    the contract is refused
    ├── DatasetError                    2    a labelled dataset is refused, with file and line
    ├── AdapterError                    2    an adapter bundle or a base model is refused
    ├── OutputLockedError               4    another run holds this output
    ├── EngineError                    75    the engine failed; run again to resume
    └── StorageError                   75    the machine failed (disk full, …); run again to resume

    KeyboardInterrupt
    └── Interrupted              130, 143    SIGINT or SIGTERM; no fault, so no `except Exception` takes it
    for one

Each message is one line that says what is wrong and what to do about it. Foreign exceptions are translated
where they enter, with ``raise … from``; the command line prints the message and exits with the code.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_TOO_MANY_ERRORS = 3  # no error: the output is complete, but more of its rows are errors than allowed


class BatchRouteError(Exception):
    """Base of all errors that end a command with one line and an exit code."""

    exit_code = 2


class InputError(BatchRouteError):
    pass


class ConfigError(BatchRouteError):
    pass


class ContractError(BatchRouteError):
    pass


class DatasetError(BatchRouteError):
    pass


class AdapterError(BatchRouteError):
    pass


class OutputLockedError(BatchRouteError):
    exit_code = 4


class EngineError(BatchRouteError):
    exit_code = 75


class StorageError(BatchRouteError):
    exit_code = 75


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM: what is done is kept, the exit code is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted; run again to resume")
        self.exit_code = 128 + number


class InvalidAnswer(ValueError):
    """A model's answer that the contract does not accept. A row's problem, never the job's."""


def nearest(name: str, known: list[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name nearest to `name`, or nothing when none is near."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted`, once: a second one must not cut the last commit.

    In another thread than the main one nothing changes: Python lets only that one handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
