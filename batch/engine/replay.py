"""A stand-in engine for I/O and fault tests: a legal answer derived from the request's hash, at once."""

import hashlib
from array import array
from collections.abc import Sequence
from typing import Any

from batch.engine import AdapterSpec, Completion, EngineSpec


class ReplayEngine:
    """Answers with one of the adapter's sample answers. The output's manifest says that this engine made it."""

    def __init__(self, spec: EngineSpec) -> None:
        self._max_num_seqs = spec.max_num_seqs or 1024
        self._adapters: dict[str, AdapterSpec] = {}
        self._logprobs: dict[str, list[list[float]]] = {}
        self._done: list[Completion] = []

    @property
    def in_flight(self) -> int:
        return len(self._done)

    def facts(self) -> dict[str, Any]:
        return {"engine": "replay", "max_num_seqs": self._max_num_seqs}

    def load(self, adapter: AdapterSpec) -> dict[str, Any]:
        self._adapters[adapter.name] = adapter
        # An even -0.01 a token: any value will do, and scores stay recognisable as made up.
        self._logprobs[adapter.name] = [[-0.01] * len(sample) for sample in adapter.samples]
        return {}

    def add(self, adapter: str, key: int, request_ids: Sequence[int]) -> None:
        samples = self._adapters[adapter].samples
        digest = hashlib.blake2b(array("I", request_ids).tobytes(), digest_size=8).digest()
        choice = int.from_bytes(digest) % len(samples)
        self._done.append(Completion(key, samples[choice], self._logprobs[adapter][choice], "stop"))

    def step(self) -> list[Completion]:
        done, self._done = self._done, []
        return done
