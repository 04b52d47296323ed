"""A stand-in engine for I/O and fault tests: a legal answer derived from the request's hash, at once.

It has the faults of a real one on demand: `$BATCH_ROUTE_REPLAY_FAULTS` names a JSON file with requests (lists
of ids) that `kill` the process or its `parent`, `stop` it, or `fail` in Python, `delay`, the seconds that a
step takes, `steps`, how many of them an answer takes, `refuse`, files that are not there: each is made by one
engine, which then does not start, and `room`, the number of requests at once for which memory suffices at the
start.
"""

import contextlib
import hashlib
import json
import os
import signal
import time
from array import array
from pathlib import Path
from typing import Any

from batch.engine import AdapterSpec, Asked, Completion, Continued, EngineSpec
from batch.errors import AdapterError

FAULTS = "BATCH_ROUTE_REPLAY_FAULTS"


class ReplayEngine:
    """Answers with one of the adapter's sample answers. The output's manifest says that this engine
    made it.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._max_num_seqs = self.at_once(spec)
        self._adapters: dict[str, AdapterSpec] = {}
        self._logprobs: dict[str, list[list[float]]] = {}
        self._done: list[Completion] = []
        faults = json.loads(Path(os.environ[FAULTS]).read_text()) if FAULTS in os.environ else {}
        self._delay = faults.pop("delay", 0.0)
        self._steps = self._left = faults.pop("steps", 1)
        if self._max_num_seqs > faults.pop("room", self._max_num_seqs):
            self._fail("fail")
        for refusal in faults.pop("refuse", ()):
            with contextlib.suppress(FileExistsError):
                Path(refusal).touch(exist_ok=False)
                raise AdapterError("no GPU answers, as it were")
        self._faults = {tuple(ids): fault for fault, requests in faults.items() for ids in requests}

    @staticmethod
    def at_once(spec: EngineSpec) -> int:
        return spec.max_num_seqs or 1024

    @property
    def in_flight(self) -> int:
        return len(self._done)

    def facts(self) -> dict[str, Any]:
        return {"engine": "replay", "made_up": True, "max_num_seqs": self._max_num_seqs}

    def load(self, adapter: AdapterSpec) -> dict[str, Any]:
        self._adapters[adapter.name] = adapter
        # An even -0.01 a token: any value will do, and scores stay recognisable as made up.
        self._logprobs[adapter.name] = [[-0.01] * len(sample) for sample in adapter.samples]
        return {}

    def add(self, adapter: str, key: int, request: Asked) -> None:
        request_ids = request.request_ids if isinstance(request, Continued) else request
        if self._faults:
            self._fail(self._faults.get(tuple(request_ids)))
        spec = self._adapters[adapter]
        digest = hashlib.blake2b(array("I", request_ids).tobytes(), digest_size=8).digest()
        choice = int.from_bytes(digest) % len(spec.samples)
        ids, logprobs = spec.samples[choice], self._logprobs[adapter][choice]
        if isinstance(request, Continued):
            ids, logprobs = ids[len(request.answer_ids) :], logprobs[len(request.answer_ids) :]
        elif spec.labels is not None:
            ids, logprobs = ids[: spec.label_tokens[choice]], logprobs[: spec.label_tokens[choice]]
        self._done.append(Completion(key, ids, logprobs, "stop"))

    def step(self) -> list[Completion]:
        time.sleep(self._delay)
        self._left = (self._left or self._steps) - 1
        if self._left:
            return []
        done, self._done = self._done, []
        return done

    @staticmethod
    def _fail(fault: str | None) -> None:
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "parent":
            os.kill(os.getppid(), signal.SIGKILL)
        elif fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault == "fail":
            raise MemoryError("out of memory, as it were")
