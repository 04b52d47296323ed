"""What the commit rests on in an object store: conditional writes, uploads that are whole or not there, and errors that say
what to do and give no secret away. Against real servers."""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import (
    BatchRouteError,
    InputError,
    Interrupted,
    StorageError,
    deadline,
    shown,
    signals_raise,
)
from batch.storage import remote
from batch.storage.listing import files_of
from batch.storage.location import Location, write_file
from batch.storage.output import prove
from batch.storage.places import check_output, refuse_inputs
from batch.storage.store import Store, store_at
from tests.conftest import reaching
from tests.faults.proxy import HANG, Proxy, proxy
from tests.servers import Weed


def in_bucket(bucket: str) -> Store:
    return store_at(Location.of(f"{bucket}/out"))


def test_a_store_keeps_what_was_there_first(bucket: str, tmp_path: Path) -> None:
    store = in_bucket(bucket)
    assert store.read("receipts/1.json") is None and store.version("receipts/1.json") is None
    assert store.create("receipts/1.json", b"one")
    assert store.create("receipts/1.json", b"one"), "a repeated request does not know itself"
    assert not store.create("receipts/1.json", b"two") and store.read("receipts/1.json") == b"one"
    first = store.version("receipts/1.json")
    store.replace("receipts/1.json", b"three", first)
    store.replace("receipts/1.json", b"three", first)
    for over in (first, None):
        with pytest.raises(StorageError, match="another run"):
            store.replace("receipts/1.json", b"four", over)
    with store.writing("parts/a.parquet") as location:
        Path(location.path).write_bytes(b"x" * 9_000_000)
    assert store.intact("parts/a.parquet", 9_000_000, "") and not store.intact("parts/a.parquet", 9, "")
    assert store.names("") == ["parts/a.parquet", "receipts/1.json"] and store.names("receipts") == [
        "receipts/1.json"
    ]
    for _ in range(2):
        store.remove("parts/a.parquet")
    assert store.names("parts") == []


def test_sixteen_writers_race_for_one_receipt(bucket: str) -> None:
    for race in range(5):
        start, won = threading.Barrier(16), list[int]()

        def write(
            writer: int, race: int = race, start: threading.Barrier = start, won: list[int] = won
        ) -> None:
            store = in_bucket(bucket)
            start.wait()
            if store.create(f"receipts/{race}.json", b'{"attempt": "%d"}' % writer):
                won.append(writer)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = won
        assert in_bucket(bucket).read(f"receipts/{race}.json") == b'{"attempt": "%d"}' % winner


def test_an_upload_is_whole_or_not_there(bucket: str) -> None:
    store, events = in_bucket(bucket), list[str]()
    write_file(Location.of(f"{bucket}/out/out.parquet"), b"old")

    def writing(fails: bool) -> Callable[[BinaryIO], None]:
        def write(sink: BinaryIO) -> None:
            for _ in range(20):
                sink.write(b"x" * 1_000_000)
            if fails:
                raise StorageError("of the test")

        return write

    def check(location: Location) -> str:
        events.append("checked")
        return location.sha256()

    def last() -> None:
        assert store.read("out.parquet") == b"old"
        events.append("last")

    with pytest.raises(StorageError, match="of the test"):
        store.assemble("out.parquet", 0, writing(fails=True), check, last)
    assert store.read("out.parquet") == b"old" and events == []
    assert len(store.assemble("out.parquet", 1 << 36, writing(fails=False), check, last)) == 64
    assert events == ["last", "checked"] and store.location("out.parquet").stamp()[0] == 20_000_000


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(bucket: str) -> None:
    location = Location.of(f"{bucket}/in.bin")
    write_file(location, b"a" * (3 << 20))
    with location.open() as handle:
        assert handle.read_at(4, 0) == b"aaaa"
        write_file(location, b"b" * (3 << 20))
        with pytest.raises(OSError, match="changed"):
            handle.read_at(4, 2 << 20)


@pytest.mark.parametrize(
    "faults", [["503", "503"], ["409"], ["lose"], ["hang"], ["lose", "503"], ["412"]], ids="-".join
)
def test_a_write_through_a_bad_network(
    faults: list[str], weed: Weed, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Created by whoever created it, once, whatever became of the answers. Fails if a repeated PUT does not know itself."""
    monkeypatch.setattr(remote, "SILENCE", timedelta(seconds=HANG / 3))
    with proxied(weed, tmp_path, monkeypatch) as network:
        store = in_bucket(s3_bucket)
        network.fail("PUT .*/receipts/", *faults)
        assert store.create("receipts/1.json", b"mine") and network.met == faults
        network.fail("PUT .*/receipts/", *faults)
        assert not store.create("receipts/1.json", b"yours")
        network.fail("PUT .*/manifest", *faults)
        if "412" not in faults:  # which is the truth, or else nobody's answer
            store.replace("manifest.json", b"mine", None)
            assert store.read("manifest.json") == b"mine"
        network.fail("GET .*/receipts/", *(fault for fault in faults if fault in ("503", "hang", "lose")))
        assert store.read("receipts/1.json") == b"mine"


def test_what_fails_for_good_is_told(
    weed: Weed, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE", timedelta(seconds=1))
    with proxied(weed, tmp_path, monkeypatch) as network:
        network.fail("PUT", *["503"] * 50)
        with pytest.raises(StorageError, match=r"status 503 \(SlowDown\)"):
            in_bucket(s3_bucket).create("receipts/1.json", b"mine")
        with (
            pytest.raises(StorageError, match=r"status 503"),
            in_bucket(s3_bucket).writing("parts/a") as location,
        ):
            Path(location.path).write_bytes(b"x" * 9_000_000)


@pytest.mark.parametrize(
    ("variables", "code", "why"),
    [
        ({"AWS_ACCESS_KEY_ID": "reader"}, 2, "denies access"),
        ({"AWS_SECRET_ACCESS_KEY": "another-secret"}, 2, "denies access"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 75, "cannot be reached"),
        ({"AWS_ENDPOINT_URL": "https://name.invalid"}, 75, "cannot be reached"),
        ({"AWS_ENDPOINT_URL": "store.example:9000"}, 2, "AWS_ENDPOINT_URL is no address"),
        ({"AWS_ENDPOINT_URL": "http://[half"}, 2, "AWS_ENDPOINT_URL is no address"),
        ({"AWS_ENDPOINT_URL": "http://name.invalid", "AWS_ALLOW_HTTP": "false"}, 2, "plain HTTP"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_at_once(
    variables: dict[str, str], code: int, why: str, weed: Weed, s3_bucket: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    started = time.monotonic()
    with reaching({**weed.environment, **variables}, tmp_path, monkeypatch):
        with pytest.raises(BatchRouteError, match=why) as refused:
            check_output(str(tmp_path), f"{s3_bucket}/out", {})
        assert refused.value.exit_code == code and time.monotonic() - started < 10
        told = str(refused.value)
        assert "\n" not in told and "secret" not in told and "AWS4" not in told and len(told) < 250
        with pytest.raises(BatchRouteError) as refused:  # which a reader may read, but there is nothing
            files_of(f"{s3_bucket}/in")
        assert "secret" not in str(refused.value)


def test_a_part_is_downloaded_once_for_its_proof(
    weed: Weed, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(weed, tmp_path, monkeypatch) as network:
        store = in_bucket(s3_bucket)
        with store.writing("shards/a.parquet") as location:
            pq.write_table(pa.table({"id": [secrets.token_hex(16) for _ in range(50_000)]}), location.path)
        network.sent = 0
        with store.at_hand("shards/a.parquet") as part:
            found = prove(part)
        assert found.rows == 50_000 and found.bytes <= network.sent < found.bytes + 1000
        assert part.name == f"{s3_bucket}/out/shards/a.parquet" and not Path(part.path).exists()


def test_a_silent_store_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weed: Weed
) -> None:
    monkeypatch.setattr(remote, "FIRST", timedelta(seconds=1))
    with proxied(weed, tmp_path, monkeypatch) as network:
        network.fail("", *["hang"] * 20)
        with pytest.raises(StorageError, match=r"does not answer|connection") as silent:
            check_output(str(tmp_path), "s3://bucket/out", {})
        assert silent.value.exit_code == 75


def test_a_signal_does_not_wait_for_a_silent_store(
    weed: Weed, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(weed, tmp_path, monkeypatch) as network, signals_raise(), deadline(0.5):
        network.fail("", *["hang"] * 20)
        started = time.monotonic()
        with pytest.raises(Interrupted):
            in_bucket(s3_bucket).create("receipts/1.json", b"mine")
        assert time.monotonic() - started < HANG - 1


def test_absent_buckets(bucket: str, tmp_path: Path) -> None:
    for output in (f"{bucket}-not/out", f"{bucket}-not/out.parquet"):
        with pytest.raises(InputError, match=r"no such bucket; choose another output"):
            check_output(str(tmp_path), output, {})


def test_a_place_is_one_by_all_its_addresses(bucket: str, tmp_path: Path) -> None:
    scheme, _, name = bucket.partition("://")
    hosts = (f"{name}@devstoreaccount1.{kind}.core.windows.net" for kind in ("dfs", "blob"))
    azure = (f"abfs://{name}", *(f"abfss://{host}" for host in hosts))
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a"], "request": ["find it"]}), file)
    write_file(Location.of(f"{bucket}/night/a.parquet"), file.read_bytes())
    inputs = [found.location for found in files_of(f"{bucket}/night").files]
    for other in (f"{scheme.upper()}://{name}", *(azure if scheme == "az" else ())):
        with pytest.raises(InputError, match="is the input as well"):
            check_output(f"{bucket}/night/a.parquet", f"{other}/night/a.parquet", {})
        for source in ("night", "n*/", "**/*.parquet"):
            with pytest.raises(InputError, match="would be read with it"):
                check_output(f"{bucket}/{source}", f"{other}/night/out.parquet", {})
        with pytest.raises(InputError, match="one of the input's files"):
            refuse_inputs(f"{other}/night/a.parquet", inputs)
        check_output(f"{bucket}/night", f"{other}/out.parquet", {})


@pytest.mark.parametrize(
    ("uri", "why", "name"),
    [
        ("s3://key:hidden@bucket/out", "credentials or options", "s3://bucket/out"),
        ("s3://bucket/out?secret_key=hidden", "credentials or options", "s3://bucket/out"),
        ("abfs://account:hidden@container/x", "credentials or options", "abfs://container/x"),
        ("s3:///out", "names no bucket", "s3:///out"),
        ("ftp://host/out", "no store is called ftp", "ftp://host/out"),
    ],
)
def test_addresses_that_are_not_read(uri: str, why: str, name: str) -> None:
    with pytest.raises(InputError, match=why) as refused:
        Location.of(uri)
    assert "hidden" not in str(refused.value) and name in str(refused.value)


def test_names_of_places() -> None:
    for uri in ("s3://bucket/a/b.parquet", "abfss://container@account.dfs.core.windows.net/a/b.parquet"):
        location = Location.of(uri)
        assert location.name == uri == shown(uri) and location.base == "b.parquet"
        assert location.folder.inside("c").name == f"{uri.rpartition('/')[0]}/c" and not location.local
        assert location.filesystem == Location.of(f"{uri}x").filesystem
    assert Location.of("s3://a/x").filesystem != Location.of("s3://b/x").filesystem
    assert Location.of("gcs://a/x").filesystem == Location.of("GS://a/x").filesystem
    container = "abfss://a@{}.dfs.core.windows.net/x"
    one, same, other = (
        Location.of(container.format(account)).filesystem for account in ("one", "One", "other")
    )
    assert one == same != other and Location.of("az://a/x").filesystem not in (one, other)


@contextlib.contextmanager
def proxied(weed: Weed, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxy(weed.port) as network:
        address = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{network.server_address[1]}"}
        with reaching({**weed.environment, **address}, cache, monkeypatch):
            yield network
