"""Whole runs to and from object stores, on real servers: the same rows as on a disk, whatever fails meanwhile."""

import re
import shutil
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from batch import publish as publishing
from batch import run
from batch.adapter.bundle import Bundle
from batch.cli import main
from batch.errors import Interrupted
from batch.job import Options
from batch.reporting.observer import Observer
from batch.scoring.router import Counts
from batch.storage import bucket as buckets
from batch.storage import object_store, remote
from batch.storage.location import Location, write_file
from batch.storage.manifest import manifest_location, output_files, read_manifest
from batch.storage.store import Store, store_at
from tests.batch.test_run import backlog, route
from tests.conftest import ROOT, reaching
from tests.servers import Weed

ROWS = 2500  # three units


def upload(source: Path, target: str) -> str:
    write_file(Location.of(target), source.read_bytes())
    return target


def objects(uri: str) -> Store:
    return store_at(Location.of(uri))


def rows_of(output: str) -> pl.DataFrame:
    """As a reader finds them who goes by the manifest."""
    manifest = read_manifest(manifest_location(output))
    assert manifest is not None
    files = output_files(output, manifest)
    return pl.DataFrame(pa.concat_tables(pq.read_table(file.open()) for file in files))


@pytest.fixture
def there(bucket: str, tmp_path: Path) -> str:
    """A bucket with a folder of two files, what is none, and a Hive partition."""
    for name, first in (("in/a", 0), ("in/b", 1000), ("days/day=2026-11-26/c", 2000)):
        ids = [f"r{row:05d}" for row in range(first, first + 1000)]
        table = pa.table({"id": ids, "request": [f"Request {each}: a dashboard." for each in ids]})
        pq.write_table(table, tmp_path / "each.parquet")
        upload(tmp_path / "each.parquet", f"{bucket}/{name}.parquet")
    write_file(Location.of(f"{bucket}/in/notes.txt"), b"not Parquet")
    write_file(Location.of(f"{bucket}/in/_tmp/x.parquet"), b"hidden")
    return bucket


def test_a_file_is_the_same_in_a_store(bucket: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Byte for byte; its input lies there too. Rerun, it is finished; verified, it is whole."""
    here = backlog(tmp_path / "in.parquet", rows=ROWS)
    source, output = upload(here, f"{bucket}/in.parquet"), f"{bucket}/night/out.parquet"
    first = route(tiny_bundle, source, output)
    assert first.exit_code == 0, first.output
    assert route(tiny_bundle, here, tmp_path / "out.parquet").exit_code == 0
    assert Location.of(output).open().read() == (tmp_path / "out.parquet").read_bytes()
    assert objects(f"{bucket}/night").names("") == ["out.parquet", "out.parquet.manifest.json"]
    again = route(tiny_bundle, source, output)
    assert again.exit_code == 0 and "finished before" in again.output
    whole = verified(output, source)
    assert whole.exit_code == 0 and f"{ROWS} rows" in whole.output, whole.output
    assert not any((tmp_path / "cache/batch-route").iterdir())


def test_a_folder_in_a_store(there: str, tiny_bundle: Bundle) -> None:
    source, output = f"{there}/in", f"{there}/out"
    first = route(tiny_bundle, source, output)
    assert first.exit_code == 0 and "not Parquet" in first.output, first.output
    names = objects(output).names("")
    parts = [name for name in names if name.endswith(".parquet")]
    assert len(parts) == 2 and all(re.match(r"_parts/[0-9a-f]{64}/shards/0000[01]-", part) for part in parts)
    assert {"_SUCCESS", "manifest.json"} < set(names) and len(names) == 2 + 2 * 2
    assert rows_of(output)["id"].to_list() == [f"r{row:05d}" for row in range(2000)]
    whole = verified(output, source)
    assert whole.exit_code == 0 and "2000 rows" in whole.output, whole.output
    again = route(tiny_bundle, source, output)
    assert again.exit_code == 0 and "finished before" in again.output
    assert objects(output).names("") == names
    onward = route(tiny_bundle, output, f"{there}/onward", "--prefix", "second_")  # read by its manifest
    assert onward.exit_code == 0 and rows_of(f"{there}/onward")["id"].len() == 2000, onward.output
    # another night's takes its place, whole, and the older parts go
    other = route(tiny_bundle, f"{there}/in/[a]*.parquet", output)
    assert other.exit_code == 0 and rows_of(output)["id"].len() == 1000, other.output
    assert len(objects(output).names("")) == 2 + 2 * 1
    days = route(tiny_bundle, f"{there}/days", f"{there}/days.parquet")
    assert days.exit_code == 0 and str(rows_of(f"{there}/days.parquet")["day"][0]) == "2026-11-26", (
        days.output
    )


def test_places_that_would_be_read_or_written_over(there: str, tiny_bundle: Bundle) -> None:
    for source, output, why in (
        (f"{there}/in", f"{there}/in/out.parquet", "lies in the input's folder"),
        (f"{there}/in/*.parquet", f"{there}/in/out.parquet", "lies in the input's folder"),
        (f"{there}/in/a.parquet", f"{there}/in/a.parquet", "is the input as well"),
        (f"{there}/in/a.parquet", f"{there}/in", "holds another Parquet file"),
    ):
        refused = route(tiny_bundle, source, output)
        assert refused.exit_code == 2 and why in refused.output, refused.output
    missing = route(tiny_bundle, f"{there}/no/in.parquet", f"{there}/out")
    assert missing.exit_code == 2 and "no file" in missing.output


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_a_run_that_ends_is_taken_up_on_another_machine(
    name: str, bucket: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """All that it needs lies in the store. A late writer's part of a unit that is done goes, and its receipt stays."""
    output = f"{bucket}/{name}"
    source = upload(backlog(tmp_path / "in.parquet", rows=ROWS), f"{bucket}/in.parquet")
    interrupted(source, output, tiny_bundle)
    (receipt, *_) = [found for found in objects(bucket).names("") if "/receipts/" in found]
    assert read_manifest(manifest_location(output)) is None
    shutil.rmtree(tmp_path / "cache")
    done = route(tiny_bundle, source, output)
    assert done.exit_code == 0 and "resumed" in done.output, done.output
    assert verified(output, source).exit_code == 0
    assert (receipt in objects(bucket).names("")) == (name == "out")


def test_errors_are_retried_in_a_store(bucket: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    source = backlog(tmp_path / "in.parquet", texts=["A dashboard.", None, "x" * 90_000, "An app."])
    for output in (f"{bucket}/out", f"{bucket}/out.parquet"):
        assert route(tiny_bundle, source, output, "--max-error-rate", "1").exit_code == 0
        again = route(tiny_bundle, source, output, "--max-error-rate", "1", "--retry-errors")
        assert again.exit_code == 0, again.output
        fresh = route(tiny_bundle, source, output, "--max-error-rate", "1", "--fresh")
        assert fresh.exit_code == 0 and rows_of(output)["status"].to_list() == ["ok", "error", "error", "ok"]
        assert verified(output, str(source)).exit_code == 0


@pytest.fixture(scope="module")
def finished(
    weed: Weed, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, str]]:
    """An input and a finished output of it, and that of another night."""
    folder = tmp_path_factory.mktemp("finished")
    weed.make("finished")
    with pytest.MonkeyPatch.context() as patch, reaching(weed.environment, folder, patch):
        made = []
        for name in ("Request", "Another"):
            here = backlog(folder / "in.parquet", texts=[f"{name} {row}." for row in range(ROWS)])
            made += [upload(here, f"s3://finished/{name}.parquet"), f"s3://finished/{name}"]
            assert route(tiny_bundle, made[-2], made[-1]).exit_code == 0
        yield made[0], made[1], made[3]


@pytest.mark.parametrize("damage", ["delete", "truncate", "bit", "swap", "double", "input"])
def test_what_is_not_whole_is_refused(
    damage: str, finished: tuple[str, str, str], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    source, output, other = finished
    store, files = objects(output), [each for each in objects(output).names("") if each.endswith(".parquet")]
    part, twice = files[1], files[1].replace("/00001-", "/00009-")
    whole, given = store.read(part) or b"", Location.of(source).open().read()
    match damage:
        case "delete":
            store.remove(part)
        case "truncate":
            write_file(store.location(part), whole[:-1])
        case "bit":
            middle = len(whole) // 2
            write_file(
                store.location(part), whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
            )
        case "swap":
            theirs = [name for name in objects(other).names("") if name.endswith(".parquet")]
            write_file(store.location(part), objects(other).read(theirs[1]) or b"")
        case "double":
            write_file(store.location(twice), whole)
        case "input":
            texts = [f"Request {row}." for row in range(ROWS - 1)] + ["Request changed."]
            upload(backlog(tmp_path / "in.parquet", texts=[*texts]), source)
    refused = verified(output, source)
    assert refused.exit_code == 2 and refused.output.startswith("Error: "), refused.output
    assert refused.output.count("\n") == 1
    write_file(store.location(part), whole)
    store.remove(twice)
    write_file(Location.of(source), given)
    assert verified(output, source).exit_code == 0


def test_a_part_with_a_flipped_bit_is_done_again(s3_bucket: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The proof finds it, since no download at the start does; the run after that mends it."""
    source, output = str(backlog(tmp_path / "in.parquet", rows=ROWS)), f"{s3_bucket}/out"
    assert route(tiny_bundle, source, output).exit_code == 0
    store = objects(output)
    part = [name for name in store.names("") if name.endswith(".parquet")][1]
    data = bytearray(store.read(part) or b"")
    data[len(data) // 2] ^= 4
    write_file(store.location(part), bytes(data))
    found = route(tiny_bundle, source, output)
    assert found.exit_code == 75 and "run again" in found.output, found.output
    assert route(tiny_bundle, source, output).exit_code == 0 and verified(output, source).exit_code == 0


def test_a_manifest_that_another_run_wrote_meanwhile_stays(
    bucket: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = backlog(tmp_path / "in.parquet", rows=40)
    for output in (f"{bucket}/out", f"{bucket}/out.parquet"):
        other = Location.of(output).inside("manifest.json") if output.endswith("out") else None
        place = other or Location.of(f"{output}.manifest.json")
        honest = publishing.publish

        def publish(*arguments: object, place: Location = place, honest: object = honest) -> object:
            write_file(place, b"{}")
            return honest(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(run, "publish", publish)
        late = route(tiny_bundle, source, output)
        assert late.exit_code == 75 and "another run" in late.output, late.output
        assert place.open().read() == b"{}"
        monkeypatch.setattr(run, "publish", honest)
        foreign = route(tiny_bundle, source, output)
        assert foreign.exit_code == 2 and "is no manifest of batch-route" in foreign.output, foreign.output
        place.remove()
        assert route(tiny_bundle, source, output).exit_code == 0


def test_a_server_that_dies_in_an_upload(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle of the output's upload: 75; once the server is back the rerun ends with the same bytes."""
    monkeypatch.setattr(remote, "PATIENCE", timedelta(seconds=1))
    monkeypatch.setattr(buckets, "LEAST_CHUNK", 5 << 20)
    here = backlog(tmp_path / "in.parquet", rows=ROWS)
    assert route(tiny_bundle, here, tmp_path / "out.parquet").exit_code == 0
    with Weed(tmp_path / "weed") as server, reaching(server.environment, tmp_path, monkeypatch):
        server.make("bucket")
        source, output = upload(here, "s3://bucket/in.parquet"), "s3://bucket/out.parquet"
        honest = object_store.ObjectStore.assemble

        def dying(store: object_store.ObjectStore, name: str, size: int, write, check, last):  # type: ignore[no-untyped-def]
            def killed(sink) -> None:  # type: ignore[no-untyped-def]
                sink.write(b"x" * (12 << 20))
                server.kill()
                write(sink)

            return honest(store, name, size, killed, check, last)

        monkeypatch.setattr(object_store.ObjectStore, "assemble", dying)
        failed = route(tiny_bundle, source, output)
        assert failed.exit_code == 75 and "run again" in failed.output, failed.output
        monkeypatch.setattr(object_store.ObjectStore, "assemble", honest)
        remote.client.cache_clear()
        server.start()
        done = route(tiny_bundle, source, output)
        assert done.exit_code == 0 and "resumed" in done.output, done.output
        assert Location.of(output).open().read() == (tmp_path / "out.parquet").read_bytes()


def verified(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["verify", *arguments])


def interrupted(source: str, output: str, bundle: Bundle) -> None:
    """A run that a signal ends once a receipt lies in the store."""

    def stop(counts: Counts, rows: int) -> None:
        within = output.rpartition("/")[0]
        if any("/receipts/" in name for name in objects(within).names("")):
            raise Interrupted(signal.SIGTERM)

    options = Options(source, output, adapter=str(bundle.path), engine="replay", max_num_seqs=64)
    with pytest.raises(Interrupted):
        run.run(options, Observer(progress=stop))


def test_the_page_reads_a_result_by_its_manifest(
    s3_bucket: str, weed: Weed, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """The snippets of docs/stores.md: Polars' on the store, DuckDB's, whose reader of stores is a download, on a copy."""
    output = f"{s3_bucket}/night"
    assert route(tiny_bundle, backlog(tmp_path / "in.parquet", rows=ROWS), output).exit_code == 0
    page = (ROOT / "docs/stores.md").read_text(encoding="utf-8")
    sql, python, _ = re.findall(r"```(?:sql|python)\n(.*?)```", page, re.S)
    names: dict[str, pl.LazyFrame] = {}
    exec(python.replace("s3://scored/night", output), names)
    assert names["rows"].select(pl.len()).collect().item() == ROWS
    store = objects(output)
    for name in store.names(""):
        (tmp_path / "night" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "night" / name).write_bytes(store.read(name) or b"")
    with duckdb.connect() as connection:
        for statement in (
            sql.replace("s3://scored/night", str(tmp_path / "night"))
            .replace("triage", "status")
            .split(";")[:2]
        ):
            found = connection.sql(statement)
        assert found.fetchall() == [("ok", ROWS)]
