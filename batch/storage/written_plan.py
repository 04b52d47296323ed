"""What is written down of a job whose units several processes score: enough to prove and publish it without
its adapter, its base or its options.
"""

import base64
import dataclasses
from typing import Any, Self

import pyarrow as pa

from batch.contract.json_text import as_json, pretty_json
from batch.storage.records import JOB, NUMBER, sealed, unsealed
from batch.storage.store import Store
from batch.storage.units import Plan
from batch.storage.workdir import PLAN

Facts = dict[str, Any]
SHAPE = {
    "facts": JOB,
    **dict.fromkeys(("rows", "unit_rows"), int),
    **dict.fromkeys(("source", "ids", "schema"), str),
    "thresholds": {str: (NUMBER, None)},
}


@dataclasses.dataclass(frozen=True)
class WrittenPlan:
    """The same for every process that scores units of a job."""

    facts: Facts  # what must be the same for a later run to resume this one
    source: str  # INPUT, as an absolute path or a URI
    rows: int
    ids: str  # sha256 (hex) of their ids in order
    unit_rows: int
    schema: pa.Schema  # of the output, with its metadata
    thresholds: dict[str, float | None]  # of `triage`, by the digest of each adapter that is served

    @property
    def units(self) -> Plan:
        return Plan(self.rows, self.unit_rows)

    def as_bytes(self) -> bytes:
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return pretty_json(sealed({**vars(self), "facts": as_json(self.facts), "schema": schema}))

    @classmethod
    def read(cls, store: Store) -> Self | None:
        """None where there is none that is as it was written."""
        try:
            told = unsealed(store.read(PLAN) or b"", SHAPE)
            if told["rows"] < 0 or told["unit_rows"] < 1:
                raise ValueError("it cannot be cut into units")
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(told["schema"])))
        except (ValueError, OSError, pa.ArrowException):
            return None
        return cls(**{**{name: told[name] for name in SHAPE}, "schema": schema})

    def write(self, store: Store) -> None:
        """In the place of another job's. Raises `StorageError`."""
        over, data = store.version(PLAN), self.as_bytes()
        if store.read(PLAN) != data:
            store.replace(PLAN, data, over)

    def ids_of(self, identity: Facts, id_column: str, text_column: str) -> str | None:
        """The digest of all ids of a backlog of this `identity`, if it was read through for this plan."""
        wanted = {"input": as_json(identity), "id_column": id_column, "text_column": text_column}
        same = all(self.facts.get(name) == value for name, value in wanted.items())
        return str(self.facts["ids"]) if same else None
