"""SIGINT and SIGTERM as an exception, so that what is done is kept on the way out."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from batch.errors import BatchRouteError


class Interrupted(BatchRouteError):
    """SIGINT or SIGTERM: what is done is kept, the exit code is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted; run again to resume")
        self.exit_code = 128 + number


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted`, once: a second one must not cut the last commit."""

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
