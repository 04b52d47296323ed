"""A folder that is a table with a log of its own is refused by name, here and in a store; one that only looks like one is read."""

from pathlib import Path

import pytest

from batch.errors import InputError
from batch.storage.listing import files_of
from batch.storage.location import Location, write_file
from tests.batch.storage.test_listing import lay, put, read


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta"),
        ("metadata/v1.metadata.json", "an Iceberg"),
        ("metadata/v1.metadata.json.gz", "an Iceberg"),
        ("metadata/00003-9c12d441-03fe-4693-9a96-a0705ddf69c1.metadata.json", "an Iceberg"),
        ("metadata/00003-9C12D441-03fe-4693-9a96-a0705ddf69c1.gz.metadata.json", "an Iceberg"),
        (".hoodie/x", "a Hudi"),
        ("_spark_metadata/0", "a Spark Structured Streaming"),
        ("snapshot/snapshot-1 schema/schema-0", "a Paimon"),
    ],
)
def test_tables_with_a_log_are_refused_by_name(tmp_path: Path, inside: str, kind: str) -> None:
    put(tmp_path / "lake/table/day=1/a.parquet")
    lay(tmp_path / "lake/table", inside)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "lake/table/day=1")
    (tmp_path / "one.parquet").symlink_to(tmp_path / "lake/table/day=1/a.parquet")
    sources = ["lake", "lake/table", "lake/table/day=1", "lake/t*", "lake/table/day=*/*.parquet"]
    for source in (*sources, "lake/table/day=1/a.parquet", "elsewhere", "one.parquet"):
        with pytest.raises(InputError, match=rf"lake/table is {kind} table"):
            files_of(str(tmp_path / source))


@pytest.mark.parametrize(
    "beside",
    [
        "metadata/tickets.metadata.json",
        "metadata/v1.metadata.json/x",
        "metadata/2026-11-01.metadata.json",
        "metadata",
        "snapshot/snapshot-1",
        "schema/schema-0",
        "snapshot/latest schema/schema-0",
        "snapshot/snapshot-1/rows.csv schema/schema-0/table.sql",
        "data/_delta_log.txt",
    ],
)
def test_what_only_looks_like_a_table_is_read(tmp_path: Path, beside: str) -> None:
    put(tmp_path / "project/nights/in.parquet")
    lay(tmp_path / "project", beside)
    assert read(tmp_path / "project/nights/in.parquet") == ["."]
    assert read(tmp_path / "project/nights") == ["in.parquet"]
    assert read(tmp_path / "project") == ["nights/in.parquet"]


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        ("_spark_metadata/0", "a Spark Structured Streaming"),
        ("metadata/v1.metadata.json", "an Iceberg"),
        ("snapshot/snapshot-1 schema/schema-0", "a Paimon"),
        ("snapshot/snapshot-1", None),
        ("metadata/tickets.metadata.json", None),
    ],
)
def test_tables_in_a_store_are_refused_wherever_they_lie(
    s3_bucket: str, inside: str, kind: str | None
) -> None:
    for name in ("day=1/a.parquet", *inside.split()):
        write_file(Location.of(f"{s3_bucket}/lake/table/{name}"), b"x")
    write_file(Location.of(f"{s3_bucket}/lake/plain/a.parquet"), b"x")
    for source in ("lake", "lake/table", "lake/t*/**/*.parquet", "lake/table/day=1/a.parquet"):
        if kind:
            with pytest.raises(InputError, match=f"^{s3_bucket}/lake/table is {kind} table"):
                files_of(f"{s3_bucket}/{source}")
        else:
            assert files_of(f"{s3_bucket}/{source}").files
    assert len(files_of(f"{s3_bucket}/lake/p*/*").files) == 1
