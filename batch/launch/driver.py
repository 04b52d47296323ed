"""A pool's driver: the process of a job that talks to Ray, for its own process must outlive what Ray does.

Each pool has another. Who has heard enough of it kills it, and the cluster ends its actors.
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from batch.errors import BatchRouteError, EngineError, ours
from batch.launch import ray
from batch.launch.actor import Begin, Here, Told
from batch.launch.ray import Size
from batch.parent import first_message, how_it_died, start_child

PATIENCE = 600.0  # seconds without a word, where one comes every few seconds once the cluster has answered

Files = dict[str, bytes]


class Order(NamedTuple):
    """What a driver is to do."""

    address: str
    devices: str | None  # as the option has it
    gpus: int  # an engine's
    cpus: int
    units: Sequence[int]
    spare: int  # how many actors of the pool may meet an engine that does not start
    files: Mapping[str, Path]  # every node gets them
    begin: Callable[..., AbstractContextManager[Here]]  # an actor's, given the size and what gets the files


class Ready(NamedTuple):
    """The cluster has answered."""

    room: int  # how many engines it has room for, of those wanted
    size: Size  # of the pool that is started there


class DriverLost(EngineError):
    """The driver's process has died. No unit is lost by it."""


class Driver:
    """Starts a pool, and ends it when it is closed.

    `ready` is what the cluster answered. Raises what :func:`batch.launch.ray.connected` and
    :func:`batch.launch.ray.size_of` raise; `EngineError` where it dies before the cluster has answered.
    """

    def __init__(self, order: Order) -> None:
        # without a name: it is gone with who holds it, however that died
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._conn, self._process = start_child("batch.launch.driver", self._log, {})
        try:
            with contextlib.suppress(OSError):  # it is gone already: the next line says why
                self._conn.send(order)
            self.ready: Ready = self._receive()
        except BaseException as error:
            self.close()
            if isinstance(error, DriverLost):  # another would die as well
                raise EngineError(str(error)) from error
            raise

    def told(self) -> Iterator[Told | int]:
        """What the actors tell of the units, as they are done. Where nothing was heard for a while: how many
        engines the living nodes have room for. Raises `DriverLost`, and `EngineError` where Ray gives up.
        """
        while (told := self._receive()) is not None:
            yield told

    def close(self) -> None:
        """Kill it; the cluster ends its actors."""
        self._process.kill()
        self._process.wait()
        self._conn.close()
        self._log.close()

    def _receive(self) -> Any:
        try:
            if not self._conn.poll(PATIENCE):
                raise DriverLost(f"Ray's driver said nothing for {PATIENCE:.0f} seconds; run again to resume")
            said = self._conn.recv()
        except (EOFError, OSError) as error:
            how = how_it_died(self._process, self._log)
            raise DriverLost(f"Ray's driver died ({how}); run again to resume") from error
        if isinstance(said, BatchRouteError):
            raise said
        return said


def serve(descriptor: str, parent: str) -> None:
    """Body of a driver's process, given the number of its end of the pipe and its parent's id."""
    conn, order = first_message(descriptor, parent)
    try:
        for said in _drive(order):
            conn.send(said)
        conn.send(None)
    except BrokenPipeError:
        pass  # the parent is gone
    except Exception as error:
        with contextlib.suppress(OSError):
            conn.send(ours(error))


def _drive(order: Order) -> Iterator[Ready | Told | int]:
    with ray.connected(order.address):
        room = ray.size_of(order.devices, ray.room(order.gpus, order.cpus))
        size = room._replace(actors=min(room.actors, len(order.units) + order.spare))
        yield Ready(room.actors, size)
        reference = ray.share(read_files(order.files))
        begin: Begin = functools.partial(order.begin, size, functools.partial(ray.shared, reference))
        for told in ray.receipts(order.units, begin, size):
            yield ray.room(order.gpus, order.cpus).actors if told is None else told


def read_files(files: Mapping[str, Path]) -> Files:
    return {name: path.read_bytes() for name, path in files.items()}
