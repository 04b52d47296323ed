"""The base that an adapter was fitted to, as weights that vLLM loads: made once, kept, made again anywhere.

An adapter is fitted to 4-bit weights. Its bundle says of them (`served_base`) how they were quantised, in
which dtype they are expanded, and the sha256 of the result. They lie in `bases/<digest>` beside the registry
(`$BATCH_ROUTE_BASES` moves that), shared by all adapters of one base. Where they are missing, they are made
from the original; where they come out otherwise than recorded, they are refused.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from batch.adapter.base_model import base_digest
from batch.adapter.made import bases_root, in_a_process, make
from batch.errors import AdapterError

# in front of a folder's name: other code that makes other bytes of the same base gets another folder
VERSION = 1

Writer = Callable[[Path, Path, str, bool, str], None]  # original, folder, quantisation, double, dtype


@dataclasses.dataclass(frozen=True)
class Expansion:
    """How a base's 4-bit weights are made and written out."""

    original: str  # sha256 of the base as it was before
    quantisation: str  # nf4 or fp4
    double: bool
    dtype: str  # of the expanded weights: float32 or bfloat16
    sha256: str | None = None  # of the expanded base, once it is made

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """From a bundle's `served_base`. Raises `AdapterError` where that says something else."""
        try:
            return cls(**facts)
        except TypeError as error:
            raise AdapterError(
                f"the adapter's base was expanded by another version ({error}); train it again"
            ) from error

    @property
    def key(self) -> str:
        facts = [VERSION, self.original, self.quantisation, self.double, self.dtype]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def home(self, bundle: Path) -> Path:
        """The expanded base's folder, for a bundle (finished or in the making) at this path: beside its
        registry or, where that only links to the bundle, beside the one that holds it.
        """
        here, there = (bases_root(path.parent) / self.key for path in (bundle.absolute(), bundle.resolve()))
        return there if there.exists() and not here.exists() else here

    def made(self, bundle: Path, original: Path, write: Writer | None = None) -> "Expansion":
        """This with its `sha256`; the folder is there. Raises `AdapterError` where it cannot be made."""
        settings = (self.quantisation, self.double, self.dtype)
        home = make(self.home(bundle), lambda folder: (write or _apart)(original, folder, *settings))
        return dataclasses.replace(self, sha256=base_digest(home))

    def found(self, bundle: Path) -> Path | None:
        """Its folder, checked against the recorded digest; None where it is not made yet."""
        home = self.home(bundle)
        if not home.exists():
            return None
        if base_digest(home) != self.sha256:
            raise AdapterError(
                f"{home} is not the base that adapter {bundle.name[:12]} was trained on, expanded; remove "
                "it, and it is made again from the original"
            )
        return home


def _apart(original: Path, folder: Path, quantisation: str, double: bool, dtype: str) -> None:
    in_a_process("batch.engine.expand", original, str(folder), quantisation, str(double), dtype)
