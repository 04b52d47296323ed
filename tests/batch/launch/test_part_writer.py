"""What is kept of a unit on this machine."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.adapter.bundle import Bundle
from batch.launch.part_writer import PartWriter
from batch.scoring.adapters import Answers
from batch.scoring.scorer import Scored
from batch.storage.units import Unit
from tests.batch.test_run import backlog, route

UNIT = Unit(0, 0, 1024)


@pytest.fixture
def writer(tiny_bundle: Bundle, tmp_path: Path) -> Callable[[], PartWriter]:
    """A process that begins with the unit, each time that it is called."""
    (tmp_path / "shards").mkdir()
    schema, answers = scored(tiny_bundle, tmp_path).schema, Answers.of([tiny_bundle])
    return lambda: PartWriter(UNIT, tmp_path / "shards", schema, answers, "", lambda _: None)


def scored(bundle: Bundle, folder: Path) -> pa.Table:
    output = folder / "out.parquet"
    if not output.exists():
        made = route(bundle, backlog(folder / "in.parquet", rows=UNIT.rows), output)
        assert made.exit_code == 0, made.output
    return pq.read_table(output)


def test_two_processes_on_one_unit_lose_and_double_nothing(
    writer: Callable[[], PartWriter], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """One that was given up lives on beside its replacement, which is started again: wherever they cut the rows."""
    table, shards = scored(tiny_bundle, tmp_path), tmp_path / "shards"

    def save(part: PartWriter, stop: int) -> None:
        rows = table.slice(part.rows, stop - part.rows)
        for batch in rows.combine_chunks().to_batches():
            part.add(Scored(batch, Counter()))
        part.save()

    for first, second, third in itertools.product((500, 640), (600, 650, 800), (850, 880, 950)):
        given_up = writer()
        for stop in (300, first):
            save(given_up, stop)
        replacement = writer()
        assert replacement.rows == first
        save(given_up, 700)
        save(replacement, second) if second > first else None
        again = writer()
        save(given_up, 900)
        save(again, third)
        last = writer()
        save(last, 1024)
        kept = [pq.read_table(path)["id"] for path in sorted(shards.iterdir()) if path in last._shards]
        assert pa.concat_tables([pa.table({"id": ids}) for ids in kept])["id"] == table["id"]
        last.forget()
        assert last.full and not list(shards.iterdir())
