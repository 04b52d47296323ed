"""A program's standard streams: a terminal or a disk that is lost takes no words, and the work goes on."""

import errno
import io
import os
import select
import sys
from typing import Any, TextIO


def outlive_terminal() -> None:
    """For a program's first lines. What is written to a lost stderr is dropped. So is what is written to a
    stdout whose reader has enough; any other fault of stdout, which may be what was asked for, is raised
    once.
    """
    for descriptor in range(3):
        _hold(descriptor)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _text(sys.stdout, _Stream(1))
    sys.stderr = _text(sys.stderr, _Stream(2))


def _hold(descriptor: int) -> None:
    """Open /dev/null where nothing is open: or the next file or socket would become a standard stream."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest free number


class _Stream(io.FileIO):
    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._lost = False

    def write(self, data: Any) -> int:
        stderr, left = self.fileno() == 2, memoryview(data)
        while left and not self._lost:
            try:
                written = super().write(left)
            except OSError as error:
                self._lost = True
                if not stderr and error.errno != errno.EPIPE:
                    raise
                break
            if written is None:  # it would block
                if stderr:
                    break
                select.select([], [self], [])
            left = left[written or 0 :]
        return len(data)


def _text(given: TextIO | None, stream: _Stream) -> TextIO:
    """In the encoding of the `given` one, which is None where nothing was open; what it lacks is escaped, as
    a name that cannot be shown must not end the work. Nothing is buffered: a signal that raises in `write`
    would leave there what is written already.
    """
    encoding = given.encoding if given else "utf-8"
    return io.TextIOWrapper(stream, encoding, "backslashreplace", write_through=True)  # type: ignore[type-var]
