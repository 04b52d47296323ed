"""What is done of a job: for each finished unit a part, its rows in a Parquet file, and a receipt that speaks
of it.

    shards/00007-<attempt>.parquet  written first, whole
    receipts/00007.json             created only where there is none: the first attempt at a unit wins

A unit is done once its receipt is there. The part of an attempt that came second is removed.
"""

import dataclasses
import re
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from batch.contract.json_text import json_line
from batch.errors import InputError, StorageError
from batch.storage.digest import bundle_digest
from batch.storage.hashing import IdDigest
from batch.storage.manifest import PartProof, Proof
from batch.storage.output import prove
from batch.storage.records import TALLY, sealed, unsealed
from batch.storage.store import Store
from batch.storage.units import Plan

AT_ONCE = 16  # receipts that are read: each is three requests to an object store
RECEIPT = re.compile(r"receipts/(\d{5,})\.json")
PART = re.compile(r"shards/\d{5,}-[0-9a-f]{16}\.parquet")
SHAPE = {
    **dict.fromkeys(("unit", "start", "rows", "size"), int),
    **dict.fromkeys(("ids", "part", "sha256", "attempt", "job"), str),
    "tally": TALLY,
    "engine": dict,
}


@dataclasses.dataclass(frozen=True)
class Receipt:
    """One unit as it was scored."""

    unit: int
    start: int  # first row of the input
    rows: int
    ids: str  # sha256 (hex) of its ids in order
    part: str  # name in the store
    sha256: str  # of the part's bytes
    size: int  # bytes
    tally: dict[str, Any]  # see `batch.reporting.tally.Tally`
    engine: dict[str, Any]  # what scored it, and what its canary showed
    attempt: str  # random, of one try at one unit
    job: str = ""  # fingerprint of the job whose unit it is: a process of another one may come late

    def as_bytes(self) -> bytes:
        return json_line(sealed(vars(self))).encode()

    @classmethod
    def of(cls, text: str | bytes) -> Self:
        """Raises `ValueError` where it is not as it was written."""
        told = unsealed(text, SHAPE)
        return cls(**{name: told[name] for name in SHAPE})


def part_name(unit: int, attempt: str) -> str:
    return f"shards/{unit:05d}-{attempt}.parquet"


def receipt_name(unit: int) -> str:
    return f"receipts/{unit:05d}.json"


class Receipts:
    """The receipts of one job, in one store. Build it with :meth:`open`."""

    def __init__(self, store: Store, plan: Plan, job: str = "") -> None:
        self.store, self.plan, self.job = store, plan, job
        self._done: dict[int, Receipt] = {}

    @classmethod
    def open(cls, store: Store, plan: Plan, job: str = "", only: Container[int] | None = None) -> "Receipts":
        """Pick up what is done of the `job` (a fingerprint). A receipt whose part is missing or damaged goes:
        its unit is done again. With `only`, the units that this process scores while others score the rest:
        then no part goes, for its receipt may yet come.
        """
        receipts = cls(store, plan, job)
        found = list(filter(None, map(RECEIPT.fullmatch, store.names("receipts"))))
        names = [each[0] for each in found if only is None or int(each[1]) in only]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for name, receipt in zip(names, pool.map(receipts._sound, names), strict=True):
                if receipt:
                    receipts._done[receipt.unit] = receipt
                else:
                    store.remove(name)
        if only is not None:
            return receipts
        kept = {receipt.part for receipt in receipts}
        store.sweep(set(filter(PART.fullmatch, store.names("shards"))) - kept)
        return receipts

    def add(self, receipt: Receipt) -> bool:
        """Declare a unit done whose part lies in the store; False where another attempt was first."""
        name = receipt_name(receipt.unit)
        winner: Receipt | None = None
        while winner is None:
            won = self.store.create(name, receipt.as_bytes())
            winner = receipt if won else self.find(receipt.unit)
            if winner is None:
                self.store.remove(name)  # damaged, without its part, or of another job's late process
        if winner.attempt != receipt.attempt:
            self.store.remove(receipt.part)
        self._done[receipt.unit] = winner
        return winner.attempt == receipt.attempt

    def take(self, text: str) -> Receipt:
        """Note a receipt that another process has made, by its bytes."""
        receipt = Receipt.of(text)
        self._done[receipt.unit] = receipt
        return receipt

    def find(self, unit: int) -> Receipt | None:
        """The receipt of a unit, whoever made it, if its part is there and whole."""
        if unit not in self._done and (receipt := self._sound(receipt_name(unit))):
            self._done[unit] = receipt
        return self._done.get(unit)

    def __contains__(self, unit: int) -> bool:
        return unit in self._done

    def __iter__(self) -> Iterator[Receipt]:
        """In the order of the input."""
        return (self._done[unit] for unit in sorted(self._done))

    def __len__(self) -> int:
        return len(self._done)

    @property
    def rows(self) -> int:
        return sum(receipt.rows for receipt in self._done.values())

    @property
    def engine(self) -> dict[str, Any]:
        """What scored the first unit that is done."""
        return next(iter(self)).engine if self._done else {}

    @property
    def missing(self) -> list[int]:
        return [unit.index for unit in self.plan if unit.index not in self]

    @property
    def complete(self) -> bool:
        return len(self) == len(self.plan)

    def prove(self, fingerprint: str, id_column: str, expect: tuple[int, str]) -> Proof:
        """Read every part back: the units follow each other without a gap, each part is the file that its
        receipt speaks of, and the ids of all of them in order are those of the input, whose count and digest
        are `expect`. Raises `StorageError`.
        """
        rows, ids, parts = 0, IdDigest(), list[PartProof]()
        columns: tuple[str, ...] = ()
        for receipt in self:
            found = self._found(receipt, id_column, ids)
            told = (rows, receipt.rows, receipt.ids, receipt.sha256)
            if found is None or (receipt.start, found.rows, found.ids, found.sha256) != told:
                self.store.remove(receipt_name(receipt.unit))
                raise StorageError(f"{receipt.part} is not what its receipt says; run again, it is redone")
            rows, columns = rows + receipt.rows, found.columns
            name = f"part-{receipt.unit:05d}-{fingerprint[:8]}.parquet"
            parts.append(PartProof(name, found.rows, found.ids, found.sha256, found.bytes))
        if (rows, ids.hexdigest()) != tuple(expect):
            what = f"{rows} rows for {expect[0]}" if rows != expect[0] else "the ids or their order differ"
            raise StorageError(f"the parts are not the input's rows: {what}; run again with --fresh")
        listing = bundle_digest({part.name: part.sha256 for part in parts})
        size = sum(part.bytes for part in parts)
        return Proof(rows, ids.hexdigest(), listing, size, columns, tuple(parts))

    def _found(self, receipt: Receipt, id_column: str, ids: IdDigest) -> Proof | None:
        """What a part holds; None where its bytes are damaged."""
        try:
            with self.store.at_hand(receipt.part) as part:
                return prove(part, id_column, ids)
        except StorageError as error:
            refused = error.__cause__
            if isinstance(refused, InputError) and not getattr(refused.__cause__, "errno", None):
                return None
            raise

    def _sound(self, name: str) -> Receipt | None:
        """None where it is not a receipt of this job, or speaks of a part that is not there as it says."""
        receipt = self._read(name)
        return receipt if receipt and self.store.intact(receipt.part, receipt.size, receipt.sha256) else None

    def _read(self, name: str) -> Receipt | None:
        """None where it is not a receipt of a unit of this plan."""
        try:
            receipt = Receipt.of(self.store.read(name) or b"")
            unit = self.plan[receipt.unit]
        except (ValueError, IndexError):
            return None
        sound = (
            name == receipt_name(unit.index)
            and (receipt.start, receipt.rows) == (unit.start, unit.rows)
            and receipt.job == self.job
        )
        return receipt if sound else None
