"""The engine in a process of its own: a crash there costs a restart, and the parent reads and writes
meanwhile.
"""

import contextlib
import os
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from batch.engine import AdapterSpec, Asked, Completion, EngineSpec
from batch.engine.worker import Usage
from batch.errors import AdapterError, EngineError
from batch.parent import STOP_SECONDS, how_it_died, kill, start_child

STALLED = 10  # times its patience, within which an engine that runs finishes a request
PATIENCE = 600.0  # seconds without any sign of the engine after which it counts as hung


class EngineProcess:
    """Starts an engine at once and talks to it. Nothing blocks until :meth:`load` or :meth:`poll`.

    Any call raises `EngineError`: with the engine's last lines once its process has died, or when the engine
    has shown no sign of life for `patience` seconds.
    """

    def __init__(self, spec: EngineSpec, patience: float = PATIENCE) -> None:
        # without a name: it is gone with who holds it, however that died
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._conn, self._process = start_child("batch.engine.worker", self._log, dict(spec.environment))
        _bound(self._conn, patience)
        with contextlib.suppress(OSError):  # it is gone already: the next call says why
            self._conn.send(spec)
        self._buffer: list[Completion] = []
        self._patience = patience
        self._start_patience = patience * spec.sharing  # they start one after another
        self.facts: dict[str, Any] = {}
        self.at_once = 0  # requests that it is to run, as soon as that is known
        self.usage = Usage()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Wait until the model is loaded. Raises `EngineError`; `AdapterError` for a base that is refused."""
        while not self.facts:
            if not self._wait(self._start_patience):
                raise self._hung()
            self._note(*self._receive())

    def load(self, adapter: AdapterSpec) -> dict[str, Any]:
        """Hot-load an adapter: no restart. Returns what its canary showed. Raises `AdapterError` if it does
        not act.
        """
        self.start()
        self._send(("load", adapter))
        while True:
            if not self._wait(self._patience):
                raise self._hung()
            kind, value = self._receive()
            if kind == "loaded":
                return value  # type: ignore[no-any-return]
            self._note(kind, value)

    def submit(self, adapter: str, work: Sequence[tuple[int, Asked]]) -> None:
        """Queue requests ``(key, ids of the request text)`` for a loaded adapter."""
        self._send(("work", (adapter, list(work))))

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """The completions that have arrived, waiting for the first, at most `timeout` seconds.

        Without a `timeout` there is one at least; an engine that ends no step within its patience, or whose
        steps finish no request within several times that, is an `EngineError`.
        """
        deadline = time.monotonic() + (self._patience if timeout is None else timeout)
        last = time.monotonic() + STALLED * self._patience
        try:
            while not self._buffer and self._wait(max(0.0, deadline - time.monotonic())):
                self._note(*self._receive())
                if timeout is None:
                    deadline = min(last, time.monotonic() + self._patience)
            while self._wait(0):
                self._note(*self._receive())
        except EngineError:
            if (
                not self._buffer
            ):  # what it finished before it died counts; the next call reports the death again
                raise
        if not self._buffer and timeout is None:
            raise self._hung()
        done, self._buffer = self._buffer, []
        return done

    def close(self) -> None:
        """End the process, at once if it does not end by itself, and remove its log."""
        if self._conn.closed:
            return
        _bound(self._conn, STOP_SECONDS)
        with contextlib.suppress(OSError):
            self._conn.send(("stop", None))
        self._join()
        self.kill()

    def kill(self) -> None:
        """End the process and its own at once, and remove its log."""
        if self._conn.closed:
            return
        kill(self._process)  # where it has ended, parts of the engine may hold their GPUs yet
        self._join()
        self._conn.close()
        self._log.close()

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _join(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)

    def _note(self, kind: str, value: Any) -> None:
        if kind == "starting":
            self.at_once = value
        elif kind == "ready":
            self.facts = value
        elif kind == "done":
            done, self.usage = value
            self._buffer.extend(done)
        elif kind == "refused":
            raise AdapterError(value)
        elif kind == "failed":
            raise EngineError(value)

    def _wait(self, timeout: float) -> bool:
        try:
            return self._conn.poll(timeout)
        except OSError:
            return True  # let `_receive` say what happened

    def _send(self, message: tuple[str, Any]) -> None:
        try:
            self._conn.send(message)
        except BlockingIOError as error:
            raise self._hung() from error
        except OSError as error:
            raise self._death() from error

    def _receive(self) -> tuple[str, Any]:
        try:
            return self._conn.recv()  # type: ignore[no-any-return]
        except BlockingIOError as error:
            raise self._hung() from error
        except (EOFError, OSError) as error:
            raise self._death() from error

    def _hung(self) -> EngineError:
        return EngineError(
            f"the engine has shown no progress for {self._patience:g} seconds; run again to resume"
        )

    def _death(self) -> EngineError:
        # What it said before it died, if anything, is worth more than its exit code.
        with contextlib.suppress(EOFError, OSError):
            while self._conn.poll(0):
                self._note(*self._conn.recv())  # raises what it said, if it could
        return EngineError(
            f"the engine process died ({how_it_died(self._process, self._log)}); run again to resume"
        )


def _bound(conn: Connection, seconds: float) -> None:
    """No read or write may block for longer: a stopped process neither takes what is sent nor ends what it
    began to say.
    """
    with socket.socket(fileno=os.dup(conn.fileno())) as pipe:  # `Pipe` is a pair of sockets
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
