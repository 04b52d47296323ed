"""Inside the engine's process: takes work off the pipe, steps the engine, sends back what is finished."""

import contextlib
import gc
import os
import queue
import sys
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from batch.engine import Asked, Engine, build, kind_of
from batch.errors import AdapterError, BatchRouteError, EngineError, ours
from batch.parent import first_message

# requests that the engine is given at most, in multiples of what it runs at once; the others wait here
AHEAD = 1.5
SIGN = 0.5  # seconds after which a step that finished no request is told of: a slow engine is not a hung one


class Usage(NamedTuple):
    """What an engine did until it told of it."""

    steps: int = 0
    idle_seconds: float = 0.0  # without a request, from the first step on


def serve(descriptor: str, parent: str) -> None:
    """Body of the engine process, given the number of its end of the pipe and its parent's id."""
    conn, spec = first_message(descriptor, parent)
    inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    # Reading goes on while the engine computes or sends: were both sides to send at once, both pipes could
    # fill up.
    threading.Thread(target=_read, args=(conn, inbox), daemon=True).start()
    # Where it is installed, transformers imports it for a kind of decoding that is not used here, and scipy
    # with it: 0.7 s of each start.
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    try:
        conn.send(("starting", kind_of(spec).at_once(spec)))
        engine = build(spec)
        conn.send(("ready", engine.facts()))
        work(conn, inbox, engine)
    except BrokenPipeError:
        pass  # the parent is gone
    except (BatchRouteError, ImportError) as error:
        # told as what it is: no rerun can serve this base or mend this installation
        with contextlib.suppress(OSError):
            conn.send(("failed" if isinstance(error, EngineError) else "refused", str(ours(error))))
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):
            conn.send(
                (
                    "failed",
                    f"the engine failed: {type(error).__name__}: "
                    f"{' '.join(str(error).split())[:400]}; run again to resume",
                )
            )
        raise
    finally:
        sys.stderr.flush()
        gc.freeze()  # vLLM collects as it shuts down, for a second or two


def _read(conn: Connection, inbox: "queue.SimpleQueue[tuple[str, Any]]") -> None:
    try:
        while True:
            inbox.put(conn.recv())
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone; whatever runs is of no use to anyone


def work(conn: Connection, inbox: "queue.SimpleQueue[tuple[str, Any]]", engine: Engine) -> None:
    """Until it is told to stop."""
    steps, idle, told = 0, 0.0, time.monotonic()
    enough = AHEAD * engine.facts()["max_num_seqs"]
    waiting: deque[tuple[str, int, Asked]] = deque()  # work that the engine need not know of yet
    while True:
        # Take all that was sent; block only when there is nothing to do.
        while not inbox.empty() or not (engine.in_flight or waiting):
            asked = time.monotonic()
            kind, value = inbox.get()
            if kind == "stop":
                return
            if kind == "load":
                try:
                    conn.send(("loaded", engine.load(value)))
                except AdapterError as error:
                    conn.send(("refused", str(error)))
            elif kind == "work":
                idle += time.monotonic() - asked if steps else 0.0
                adapter, requests = value
                waiting.extend((adapter, key, request_ids) for key, request_ids in requests)
        # A request costs time to add: one that could not run yet must not keep those from running that can.
        while waiting and engine.in_flight < enough:
            engine.add(*waiting.popleft())
        done = engine.step()
        steps += 1
        if done or time.monotonic() - told >= SIGN:
            conn.send(("done", (done, Usage(steps, idle))))
            told = time.monotonic()
