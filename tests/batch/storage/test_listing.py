"""Which files an INPUT names: each is read or named with a reason; nothing is left out silently."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.errors import InputError
from batch.storage.backlog import Backlog
from batch.storage.listing import files_of
from batch.storage.records import DIGEST
from tests.batch.storage.examples import manifest
from tests.conftest import ROOT, reaching


def put(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # pyarrow asks for a name in UTF-8
        pq.write_table(pa.table({"id": [f"{path.name!r} {number}"], "request": ["find it"]}), file)
    return path


def read(source: object) -> list[str]:
    root = str(source)
    if "*" in root:
        root = root.split("*")[0].split("[")[0].rpartition("/")[0]
    return [os.path.relpath(found.location.path, root) for found in files_of(str(source)).files]


def skipped(source: object) -> dict[str, str]:
    return {os.path.basename(path): why for path, why in files_of(str(source)).skipped}


NAMES = ("a.parquet", "B.PARQUET", "c.parq", "d.pq", "e.parquet.gzip", "f.snappy.parquet", "g.parquet.zst")


@pytest.mark.parametrize(
    "name", [*NAMES, "20260101_000000_00001_abcde", "part-0", "h.pqt", "export.2026-11-26"]
)
def test_a_parquet_file_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    assert read(tmp_path) == [name]


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet")
    for name in ("_hidden.parquet", ".tmp.parquet", "b.parquet.crdownload", "c.parquet~", "d.parquet.bak"):
        put(tmp_path / name)
    put(tmp_path / "_temporary/0/e.parquet")
    (tmp_path / "rows.csv").write_text("id,request\n")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "notes").touch()
    os.mkfifo(tmp_path / "pipe.parquet")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
    assert read(tmp_path) == ["a.parquet"]
    assert skipped(tmp_path) == {
        **dict.fromkeys(("_hidden.parquet", ".tmp.parquet", "_temporary", "_SUCCESS"), "hidden"),
        "b.parquet.crdownload": "its name ends in .crdownload",
        "c.parquet~": "its name ends in ~",
        "d.parquet.bak": "its name ends in .bak",
        **dict.fromkeys(("rows.csv", "notes"), "not Parquet"),
        **dict.fromkeys(("pipe.parquet", "s"), "a device, a pipe or a socket"),
    }
    notes = Backlog.open(str(tmp_path), "id", "request").notes
    assert f"skipped {tmp_path}/rows.csv: not Parquet" in notes and len(notes) == 11


def of_a_run(folder: Path, *named: str) -> Path:
    """An output, with one part of the output that it replaced; `named` are its own."""
    for name in (*named, "part-00000-0ld0ld0l.parquet"):
        put(folder / name)
    (folder / "manifest.json").write_bytes(manifest([{"name": name} for name in named]))
    return folder


NAMED = ("part-00000-0a0a0a0a.parquet", "part-00001-0a0a0a0a.parquet")
STORED = ("_parts/0a/shards/00000-1.parquet", "_parts/0a/shards/00001-2.parquet")


@pytest.mark.parametrize("named", [NAMED, STORED])
def test_an_output_is_what_its_manifest_names(tmp_path: Path, named: tuple[str, ...]) -> None:
    """Between the manifest and the end of a run the parts that it replaced lie there too. What was copied from
    a store has its parts in a hidden folder."""
    one = of_a_run(tmp_path / "nights/day=1", *named)
    put(one / "_parts/0b/shards/00000-1.parquet")  # another job's
    put(one / "mine/a.parquet")
    wanted = [*named, "mine/a.parquet"]
    assert sorted(read(one)) == sorted(wanted)
    assert skipped(one)["part-00000-0ld0ld0l.parquet"] == "the manifest.json beside it does not name it"
    assert ("_parts" in skipped(one)) == (named == NAMED)
    for source in (tmp_path / "nights", tmp_path / "nights/*", tmp_path / "nights/**/*.parquet"):
        assert sorted(read(source)) == sorted(f"day=1/{name}" for name in wanted)
        assert {found.partitions for found in files_of(str(source)).files} == {(("day", "1"),)}
    (one / named[1]).unlink()
    with pytest.raises(InputError, match=f"cannot read {one}/{named[1]}: No such file"):
        Backlog.open(str(one), "id", "request")


def test_a_manifest_that_no_run_wrote_changes_nothing(tmp_path: Path) -> None:
    one = of_a_run(tmp_path / "out", NAMED[0])
    own = json.loads((one / "manifest.json").read_text())
    unsealed = {"output": {"parts": [{"name": NAMED[0]}]}}
    for others in ({}, unsealed, own | {"run": {}}, own | {DIGEST: "0" * 64}):
        (one / "manifest.json").write_text(json.dumps(others))
        assert read(one) == ["part-00000-0a0a0a0a.parquet", "part-00000-0ld0ld0l.parquet"]


def test_what_is_named_as_parquet_and_is_none_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("id,request\n")
    with pytest.raises(InputError, match=r"b\.parquet is not a Parquet file"):
        Backlog.open(str(tmp_path), "id", "request")


@pytest.mark.parametrize("name", ["b.parquet", "B.PARQ", "b"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "a.parquet")
    (tmp_path / name).symlink_to(tmp_path / "gone/b.parquet")
    with pytest.raises(InputError, match="a link to a file that is not there"):
        files_of(str(tmp_path))
    with pytest.raises(InputError, match="a link to nothing"):
        files_of(str(tmp_path / name))


def test_links_are_followed_and_a_file_is_read_once(tmp_path: Path) -> None:
    put(tmp_path / "store/a.parquet")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/folder").symlink_to(tmp_path / "store")
    (tmp_path / "in/latest.parquet").symlink_to(tmp_path / "store/a.parquet")
    (tmp_path / "in/round").symlink_to(tmp_path / "in")
    assert read(tmp_path / "in") == ["folder/a.parquet"]
    assert skipped(tmp_path / "in") == {"latest.parquet": f"the same file as {tmp_path}/in/folder/a.parquet"}


def test_globs_of_files_and_of_folders(tmp_path: Path) -> None:
    for name in (
        "n1/a.parquet",
        "n1/deep/b.parquet",
        "n2/c.parquet",
        "other/d.parquet",
        "spark.parquet/part-0",
    ):
        put(tmp_path / name)
    assert read(f"{tmp_path}/n*") == ["n1/a.parquet", "n1/deep/b.parquet", "n2/c.parquet"]
    assert read(f"{tmp_path}/n[!1]/*.parquet") == ["n2/c.parquet"]
    assert read(f"{tmp_path}/*.parquet") == ["spark.parquet/part-0"]
    assert read(f"{tmp_path}/**/[ab].parquet") == ["n1/a.parquet", "n1/deep/b.parquet"]
    assert read(f"{tmp_path}/n1/**") == ["a.parquet", "deep/b.parquet"]


@pytest.mark.parametrize("folder", ["backlog [2026-11]", "[a", "q?", "50% *new*", "日本 [x]"])
def test_what_lies_there_under_its_very_name_is_no_pattern(tmp_path: Path, folder: str) -> None:
    put(tmp_path / folder / "a.parquet")
    for source in (tmp_path / folder, tmp_path / folder / "a.parquet", tmp_path / folder / "*.parquet"):
        assert [found.location.path for found in files_of(str(source)).files] == [
            str(tmp_path / folder / "a.parquet")
        ]
    with pytest.raises(InputError, match=r"no (Parquet )?file"):
        files_of(str(tmp_path / folder / "slip.parquet"))


def test_partitions_become_columns(tmp_path: Path) -> None:
    for index, path in enumerate(("_day=2026-11-01/shop=7", "_day=2026-11-02/shop=-12")):
        put(tmp_path / "t" / path / f"part-{index}", index)
    backlog = Backlog.open(str(tmp_path / "t"), "id", "request")
    backlog.check_ids()
    rows = pa.Table.from_batches(backlog.batches(), backlog.schema)
    assert [str(backlog.schema.field(name).type) for name in ("_day", "shop")] == ["date32[day]", "int64"]
    assert [str(day) for day in rows["_day"].to_pylist()] == ["2026-11-01", "2026-11-02"]
    assert rows["shop"].to_pylist() == [7, -12]
    (batch,) = list(backlog.batches(columns=["shop"], start_row=1))
    assert batch.to_pydict() == {"shop": [-12]}


@pytest.mark.parametrize(
    ("values", "kind", "read_as"),
    [
        (("01", "2"), "string", ["01", "2"]),
        (("__HIVE_DEFAULT_PARTITION__", "a%2Fb"), "string", [None, "a/b"]),
        (("1", "9223372036854775808"), "string", ["1", "9223372036854775808"]),
        (("5", "__HIVE_DEFAULT_PARTITION__"), "int64", [5, None]),
    ],
)
def test_partition_values_lose_nothing(
    tmp_path: Path, values: tuple[str, str], kind: str, read_as: list[object]
) -> None:
    for value in values:
        put(tmp_path / f"k={value}/{values.index(value)}.parquet", values.index(value))
    backlog = Backlog.open(str(tmp_path), "id", "request")
    assert str(backlog.schema.field("k").type) == kind
    assert [value for batch in backlog.batches() for value in batch.column("k").to_pylist()] == read_as


def test_an_id_may_be_a_partition_key(tmp_path: Path) -> None:
    for key in (7, 8, 9):
        path = tmp_path / f"id={key}/x.parquet"
        path.parent.mkdir()
        pq.write_table(pa.table({"request": ["find it"] * (key // 9 + 1)}), path)
    backlog = Backlog.open(str(tmp_path), "id", "request")
    ids = [value for batch in backlog.batches(columns=["id"]) for value in batch.column(0).to_pylist()]
    assert ids == [7, 8, 9, 9]
    with pytest.raises(InputError, match="rows 2 and 3 have the same id; make ids unique"):
        backlog.check_ids()


def test_partitions_that_contradict_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "one/Request=1/a.parquet")
    with pytest.raises(InputError, match="'Request' is also a column, 'request'"):
        Backlog.open(str(tmp_path / "one"), "id", "request")
    put(tmp_path / "two/day=1/a.parquet")
    put(tmp_path / "two/b.parquet")
    with pytest.raises(InputError, match="same partition keys"):
        Backlog.open(str(tmp_path / "two"), "id", "request")
    for folder, key in (("three/day=1/day=2", "day"), ("four/Day=1/x=1/day=2", "day")):
        put(tmp_path / folder / "a.parquet")
        with pytest.raises(InputError, match=rf"a\.parquet lies twice under the key '{key}'"):
            Backlog.open(str(tmp_path / folder.split("/")[0]), "id", "request")
    for name in ("%FF", "caf%E9"):
        put(tmp_path / "five" / f"k={name}" / "a.parquet")
        with pytest.raises(InputError, match=rf"'{name}' is not valid UTF-8 once decoded"):
            Backlog.open(str(tmp_path / "five"), "id", "request")
        shutil.rmtree(tmp_path / "five")


def lay(folder: Path, names: str) -> None:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


class Keys(http.server.BaseHTTPRequestHandler):
    """A store that holds one object, under a key that a client cannot ask for."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def do_GET(self) -> None:
        listing = "<ListBucketResult><IsTruncated>false</IsTruncated>"
        if "prefix=in%2F" in self.path and "metadata" not in self.path:
            listing += "<Contents><Key>in/a//b.parquet</Key><Size>9</Size><ETag>x</ETag>"
            listing += "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{listing}</ListBucketResult>".encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "k"),
        }
        with (
            reaching(variables, tmp_path, monkeypatch),
            pytest.raises(InputError, match=r"read s3://b/in: the key 'in/a//b\.parquet' has a segment that"),
        ):
            files_of("s3://b/in/")
        server.shutdown()


# root may read everything, unless it gives that up
NO_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"] if os.geteuid() == 0 else []
LISTED = """
import sys
from batch.errors import BatchRouteError
from batch.storage.listing import files_of
from batch.storage.records import DIGEST
try:
    found = files_of(sys.argv[1])
    print("read", len(found.files), *(why for _, why in found.skipped))
except BatchRouteError as error:
    print(error.exit_code, error)
"""


def listed(source: Path, closed: Path) -> str:
    """What a user who may not look into `closed` is told."""
    closed.chmod(0)
    try:
        command = [*NO_ROOT, sys.executable, "-c", LISTED, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    finally:
        closed.chmod(0o700)
    return done.stdout.strip()


@pytest.mark.skipif(bool(NO_ROOT) and not shutil.which("setpriv"), reason="root reads everything")
@pytest.mark.parametrize(
    ("closed", "source", "told"),
    [
        ("metadata/x", "nights/in.parquet", "read 1"),
        ("snapshot/x", "nights", "read 1"),
        ("nights/lost+found/x", "nights", "read 1 hidden"),
        ("nights/README", "nights", "2 cannot read {}: Permission denied; check its permissions"),
        ("nights/team/x", "nights", "2 cannot read {}: Permission denied; check its permissions"),
        ("nights/metadata/x", "nights", "2 cannot read {}: Permission denied; check its permissions"),
        ("nights/README", "nights/*.parquet", "read 1"),
        ("nights/manifest.json", "nights/*.parquet", "read 1"),
    ],
)
def test_what_may_not_be_read_is_named_unless_it_is_none_of_the_inputs(
    tmp_path: Path, closed: str, source: str, told: str
) -> None:
    put(tmp_path / "nights/in.parquet")
    lay(tmp_path, closed)
    shut = tmp_path / closed.removesuffix("/x")
    assert listed(tmp_path / source, shut) == told.format(shut)


@pytest.mark.skipif(bool(NO_ROOT) and not shutil.which("setpriv"), reason="root reads everything")
@pytest.mark.parametrize("name", ["notes", "notes.txt"])
def test_a_link_into_a_closed_folder_is_no_link_to_nothing(tmp_path: Path, name: str) -> None:
    put(tmp_path / "in/a.parquet")
    lay(tmp_path, "closed/notes")
    (tmp_path / "in" / name).symlink_to(tmp_path / "closed/notes")
    told = listed(tmp_path / "in", tmp_path / "closed")
    assert told == f"2 cannot read {tmp_path}/in/{name}: Permission denied; check its permissions"


@pytest.mark.parametrize("source", ["", " ", "nosuch://x/y", "hf://datasets/a/b", "http://host/x.parquet"])
def test_what_is_no_path_is_refused_at_once(source: str) -> None:
    with pytest.raises(InputError, match="; "):
        files_of(source)


def test_names_that_are_not_utf8_are_refused_and_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.parquet")
    put(tmp_path / name)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=r"caf\\xe9\.parquet: the name is not valid UTF-8"):
            files_of(str(source))
