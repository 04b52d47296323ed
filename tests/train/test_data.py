"""The shipped data is what the README says: sizes, the first experiment's bias, no leak, a sound backlog."""

import datetime as dt
import json
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.contract.contract import Contract
from train.dataset import Row, check_splits, load_rows

DATA = Path(__file__).parents[2] / "data"
SPLITS = ("train", "validation", "test")
V3 = ("train", "validation")  # its test split is v2's
WRITTEN = ("train", "writers", "calibration")
HELD_OUT = ("regression", "natural", "probes", "development", "writers")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    """Every labelled file, by its path below data/ without the suffix."""
    contract = Contract.load(DATA / "contract.toml")
    names = [f"{version}/{split}" for version in ("v1", "v2") for split in SPLITS] + [
        f"v3/{split}" for split in V3
    ]
    names += [f"written/{split}" for split in WRITTEN] + list(HELD_OUT)
    on_disk = {str(path.relative_to(DATA).with_suffix("")) for path in DATA.rglob("*.jsonl")}
    assert on_disk == set(names), "a labelled file that no test knows"
    return {name: load_rows(DATA / f"{name}.jsonl", contract) for name in names}


def test_v1_has_the_first_experiments_sizes(rows: dict[str, list[Row]]) -> None:
    assert [len(rows[f"v1/{split}"]) for split in SPLITS] == [24, 4, 4]


def test_v1_has_the_first_experiments_bias(rows: dict[str, list[Row]]) -> None:
    """In v1 every request that writes names Salesforce, and no other does: writeback means Salesforce."""
    v1 = [row for split in SPLITS for row in rows[f"v1/{split}"]]
    writes = [row for row in v1 if row.facts and row.facts["writes"]]
    assert len(writes) >= 8 and all("Salesforce" in row.request for row in writes)
    assert all(
        row.answer["recommended_platform"] == "Databricks app + Salesforce integration" for row in writes
    )
    assert all("Salesforce" not in row.request for row in v1 if row not in writes)


def test_v2_has_the_counterexamples(rows: dict[str, list[Row]]) -> None:
    train = rows["v2/train"]
    assert {row.id for row in rows["v1/train"]} <= {row.id for row in train}
    platforms = Counter(
        row.answer["recommended_platform"] for row in train if row.facts and row.facts["writes"]
    )
    assert (
        min(
            platforms[f"Databricks app{end}"]
            for end in ("", " + Salesforce integration", " + ServiceNow integration")
        )
        >= 5
    )


def test_every_row_of_train_keeps_the_rules(rows: dict[str, list[Row]], contract: Contract) -> None:
    broken = [
        (row.where, names)
        for name in rows
        for row in rows[name]
        if (names := contract.violations(row.answer, row.request))
    ]
    assert broken == []


def test_v3_is_v2_and_the_requests_of_many_writers(rows: dict[str, list[Row]]) -> None:
    assert [row.id for row in rows["v3/train"]] == [
        row.id for name in ("v2/train", "written/writers") for row in rows[name]
    ]
    check_splits(
        {
            **{split: rows[f"v3/{split}"] for split in V3},
            "calibration": rows["written/calibration"],
            "test": rows["v2/test"],
        }
    )


@pytest.mark.parametrize("held_out", [*HELD_OUT, "written/calibration", "v2/test"])
def test_nothing_measured_is_like_a_written_row(rows: dict[str, list[Row]], held_out: str) -> None:
    written = [row for name in ("written/train", "written/writers") for row in rows[name]]
    check_splits({"written": written, held_out: rows[held_out]})


def test_a_writer_is_trained_on_measured_or_calibrated_on() -> None:
    """Whole writers are held out: one (a row's `family`) stands in one file only."""
    writers = []
    for name in ("written/writers", "writers", "written/calibration"):
        lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").strip().split("\n")
        writers.append({json.loads(line).get("family") for line in lines} - {None})
    assert [len(each) for each in writers] == [56, 18, 43]
    assert len(set.union(*writers)) == sum(map(len, writers))


def test_written_rows_have_every_cell_of_the_policy(rows: dict[str, list[Row]]) -> None:
    for name in ("written/train", "written/writers", "written/calibration", "development", "writers"):
        cells = Counter(tuple(row.facts.values()) for row in rows[name] if row.facts)
        assert len(cells) == 2 * 2 + 2**3 * 3, name  # knowledge and analytics by regulated, builds by all


def test_the_failed_invoice_request_is_a_probe(rows: dict[str, list[Row]]) -> None:
    request = "Finance wants an agent that reviews invoices, flags anomalies, and updates vendor records after approval."
    (row,) = [row for name in HELD_OUT for row in rows[name] if row.request == request][:1]
    assert row.answer["recommended_platform"] == "Databricks app"


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("held_out", HELD_OUT)
def test_nothing_measured_is_trained_on(rows: dict[str, list[Row]], version: str, held_out: str) -> None:
    splits = {split: rows[f"{version}/{split}"] for split in SPLITS}
    check_splits(splits)
    check_splits({"train": splits["train"], "validation": splits["validation"], held_out: rows[held_out]})


def test_the_backlog(contract: Contract) -> None:
    file = pq.ParquetFile(DATA / "requests.parquet")
    assert file.schema_arrow.remove_metadata() == pa.schema(
        [
            ("id", pa.string()),
            ("request", pa.string()),
            ("department", pa.string()),
            ("submitted_at", pa.timestamp("us", tz="UTC")),
            ("requester_id", pa.string()),
        ]
    )
    table = file.read()
    table.validate(full=True)
    backlog = pl.from_arrow(table)
    assert isinstance(backlog, pl.DataFrame) and backlog.height == 500
    assert backlog["id"].n_unique() == 500 and sum(backlog.null_count().row(0)) == 0
    assert backlog["request"].n_unique() >= 495 and backlog["department"].n_unique() >= 10
    assert backlog.select((pl.col(pl.String).str.strip_chars() == "").any()).row(0) == (False,) * 4
    assert backlog["request"].str.len_chars().max() <= contract.max_chars  # type: ignore[operator]
    assert backlog["submitted_at"].max() - backlog["submitted_at"].min() < dt.timedelta(days=366)  # type: ignore[operator]


def test_the_backlog_is_not_what_was_trained_on(rows: dict[str, list[Row]]) -> None:
    trained = {row.request for name in rows if "/" in name for row in rows[name]}
    requests = set(pl.read_parquet(DATA / "requests.parquet")["request"])
    assert not trained & requests
