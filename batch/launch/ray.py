"""A Ray cluster's actors, each with an engine: Ray places them and starts them again, the driver hears of
receipts only. Nothing else imports ray.

What Ray 2.60 does that one would not expect, and what is done about it:

- an autoscaling pool brings up one actor at a time: its size is fixed;
- an exception of a call ends the job, and a call that is tried again goes to the same actor: so the actor
  starts its engine again by itself, and leaves as a process only when that does not get well;
- such a call is tried again without end: attempts are counted in the store (`actor.py`);
- calls of an actor whose node is lost wait for room for that very actor, for ever if there is none: once
  nothing else is left, the pool is made anew, as large as the room is (`batch.cluster`);
- `max_errored_blocks` drops the rows of what failed: it stays 0;
- one actor that dies while it starts ends the job, and so does half an hour without a receipt: both limits
  are raised;
- an actor that has started gets units, and one that died gets another in its place, on the same GPU: where
  the engine refuses to start, the actor's constructor never returns (`actor.py`);
- what is fetched ahead is held back until more comes: nothing is;
- constructor arguments are kept for the life of the job: a name and a few strings; an adapter goes through
  the object store, once a node;
- it takes SIGTERM for itself: given back;
- it writes into stderr, ends the process where the cluster is gone, and dies by a signal where a thread waits
  for an answer as it is shut down: the driver is a process of its own (`driver.py`);
- any call without a cluster starts one: turned off;
- it reports on its use to its makers unless told not to.

An engine that spans several GPUs has them on one node, as one actor's `num_gpus`: no placement group is
needed.
"""

import contextlib
import importlib.util
import json
import logging
import os
import queue
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from batch.errors import EngineError, InputError, InstallationError
from batch.launch.actor import Begin, Told, UnitActor
from batch.storage.location import reason

IN_FLIGHT = 2  # units with an actor
STARTS = 8  # actors in a row that may die while they start
PATIENCE = 24 * 3600  # seconds without a receipt: a unit may take hours, an engine that hangs ends by itself
TICK = 5.0  # seconds
REACH = 10.0  # seconds for the cluster to take a connection
# No reports to its makers; no lines among ours (one warns of what Ray Data itself does); and a call that
# comes after the end is an error rather than the start of a cluster on this machine.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_ENABLE_AUTO_CONNECT": "0"}


class Size(NamedTuple):
    """Of the pool, and what each actor takes."""

    actors: int
    gpus: int
    cpus: int


def check_asked(address: str, devices: str | None) -> None:
    """Refuse what needs no cluster to be refused, whether there is work for one or not. Raises
    `InstallationError`, `InputError`.
    """
    if importlib.util.find_spec("ray") is None:
        raise InstallationError(
            "--ray needs the package ray; run `make setup`, or pip install 'batch-route[ray]'"
        )
    if address != "auto" and not re.fullmatch(r"(ray://)?.+:\d{1,5}", address):
        raise InputError(f"--ray {address} is not the HOST:PORT of a node; give that, or --ray alone")
    if devices not in (None, "all") and not re.fullmatch(r"0*[1-9][0-9]{0,8}", devices):
        raise InputError(f"--devices {devices} is not known with --ray; give all, or a number of engines")


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be the driver of a job on the cluster at `address` (`auto`: the one that runs here). Raises
    `EngineError` where it does not answer, `InputError`.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _reach(address)
        import ray

        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        # one that does not answer may be up when the job is run again
        kind = EngineError if isinstance(error, OSError) else InputError
        what = "no Ray cluster runs here" if address == "auto" else f"cannot reach a Ray cluster at {address}"
        remedy = "start one (ray start --head), or name a node's HOST:PORT with --ray"
        raise kind(f"{what}: {reason(error)}; {remedy}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Where nothing listens, Ray ends the process itself, after minutes and without a word. Raises
    `OSError`.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()


def room(gpus: int, cpus: int) -> Size:
    """How many engines the cluster's living nodes have room for, each of `gpus` GPUs, or of none where the
    cluster has none.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    gpus = gpus if any(node.get("GPU") for node in nodes) else 0
    by_cpus = [int(node.get("CPU", 0) // cpus) for node in nodes]
    by_gpus = [int(node.get("GPU", 0) // gpus) for node in nodes] if gpus else by_cpus
    return Size(sum(map(min, by_cpus, by_gpus)), gpus, cpus)


def size_of(wanted: str | None, found: Size) -> Size:
    """Of a pool on a cluster with that room, of `wanted` actors, which :func:`check_asked` has seen. Raises
    `InputError`.
    """
    if not found.actors:
        needs = f"{found.cpus} CPUs" + (f" and {found.gpus} GPUs" if found.gpus else "")
        raise InputError(f"no node of the cluster has the {needs} that an engine takes; add one")
    if wanted in (None, "all"):
        return found
    if int(wanted) > found.actors:
        raise InputError(f"--devices {wanted}: the cluster has room for 1 to {found.actors} engines")
    return found._replace(actors=int(wanted))


def share(value: Any) -> Any:
    """Put a value into the cluster's object store; :func:`shared` gets it, on whatever node."""
    import ray

    return ray.put(value)


def shared(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def restarted() -> bool:
    """Of the actor that asks: whether it was another process before, whose calls wait for this one."""
    import ray

    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def receipts(units: Sequence[int], begin: Begin, size: Size) -> Iterator[Told | None]:
    """What a pool of that size tells of the `units`, as they are done; None each time that nothing was heard
    for `TICK` seconds. Raises `EngineError` where Ray gives up.
    """
    heard: queue.SimpleQueue[Told | Exception | None] = queue.SimpleQueue()
    # in a thread: nothing interrupts who waits for Ray
    threading.Thread(target=_listen, args=(units, begin, size, heard), daemon=True).start()
    while True:
        try:
            told = heard.get(timeout=TICK)
        except queue.Empty:
            yield None
            continue
        if told is None:
            return
        if isinstance(told, Exception):
            last = [line.strip() for line in str(told).splitlines() if line.strip()][-1:]
            raise EngineError(f"the cluster gave up: {' '.join(last)[:300]}; run again to resume") from told
        yield told


def _listen(
    units: Sequence[int], begin: Begin, size: Size, heard: "queue.SimpleQueue[Told | Exception | None]"
) -> None:
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = 0
    context.max_consecutive_actor_init_deaths = STARTS
    context.execution_no_progress_timeout_s = PATIENCE
    pool = ActorPoolStrategy(
        size=size.actors,
        max_tasks_in_flight_per_actor=IN_FLIGHT,
        max_concurrent_calls_per_actor=IN_FLIGHT,
        enable_true_multi_threading=True,
    )
    try:
        scored = ray.data.from_items(
            [{"unit": unit} for unit in units], override_num_blocks=len(units)
        ).map_batches(
            UnitActor,
            batch_size=1,
            num_gpus=size.gpus,
            num_cpus=size.cpus,
            compute=pool,
            fn_constructor_args=(begin,),
        )
        for batch in scored.iter_batches(batch_size=None, prefetch_batches=0):
            for told in batch["told"]:
                heard.put(json.loads(told))
        heard.put(None)
    except Exception as error:
        heard.put(error)
