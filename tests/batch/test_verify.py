"""`batch-route verify`: what is whole is said to be, what differs in anything is refused, for a file and a folder."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from batch.adapter.bundle import Bundle
from batch.cli import main
from batch.storage.location import Location
from batch.storage.manifest import manifest_location
from batch.storage.parquet import ParquetSource
from batch.storage.store import store_at
from batch.verify import _alike
from tests.batch.storage.examples import edited
from tests.batch.test_run import backlog, route


def verified(*arguments: Path) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


@pytest.fixture(params=["out.parquet", "out"])
def made(request: pytest.FixtureRequest, tiny_bundle: Bundle, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Input, output, and one of the output's files."""
    source, output = backlog(tmp_path / "in.parquet", rows=2500), tmp_path / request.param
    assert route(tiny_bundle, source, output).exit_code == 0
    if request.param == "out":
        names = [part.name for part in sorted(output.glob("*.parquet"))]
        assert len(names) == 3 and (output / "_SUCCESS").exists()
        return source, output, output / names[1]
    return source, output, output


def test_what_is_whole(made: tuple[Path, Path, Path], tiny_bundle: Bundle) -> None:
    source, output, _ = made
    for arguments in ((output,), (output, source)):
        result = verified(*arguments)
        assert result.exit_code == 0 and "2500 rows" in result.output, result.output
    again = route(tiny_bundle, source, output)
    assert again.exit_code == 0 and "finished before" in again.output


@pytest.mark.parametrize("damage", ["delete", "truncate", "bit", "swap", "no manifest", "manifest", "double"])
def test_what_is_not(made: tuple[Path, Path, Path], damage: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    _, output, file = made
    data = bytearray(file.read_bytes())
    manifest = output / "manifest.json" if output.is_dir() else output.with_name("out.parquet.manifest.json")
    match damage:
        case "delete":
            file.unlink()
        case "truncate":
            file.write_bytes(data[:-1])
        case "bit":
            data[len(data) // 2] ^= 4
            file.write_bytes(data)
        case "swap":
            other = backlog(tmp_path / "other.parquet", texts=[f"Another {row}." for row in range(2500)])
            assert route(tiny_bundle, other, tmp_path / "o.parquet").exit_code == 0
            file.write_bytes((tmp_path / "o.parquet").read_bytes())
        case "no manifest":
            manifest.unlink()
        case "manifest":
            told = json.loads(manifest.read_text())
            told["output"]["rows"] += 1
            manifest.write_text(json.dumps(told))
        case "double":
            if not output.is_dir():
                return
            (output / f"copy-{file.name}").write_bytes(data)
    result = verified(output)
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert result.output.startswith("Error: ") and result.output.count("\n") == 1


@pytest.mark.parametrize("command", ["verify", "show"])
def test_damaged_bytes_are_never_parsed(
    made: tuple[Path, Path, Path], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some of them, Parquet's reader ends the process."""
    _, output, file = made
    whole, parse = file.read_bytes(), ParquetSource.open

    def parse_others(location: Location) -> ParquetSource:
        assert location.path != str(file)
        return parse(location)

    monkeypatch.setattr(ParquetSource, "open", parse_others)
    for damaged in (whole.replace(b"request", b"reqtest"), whole[:-9], b""):
        file.write_bytes(damaged)
        result = CliRunner().invoke(main, [command, str(output)])
        told = f"{file} has other bytes than its manifest says; run again with --fresh"
        assert (result.exit_code, result.output) == (2, f"Error: {told}\n")
    monkeypatch.undo()
    file.write_bytes(whole)
    assert CliRunner().invoke(main, [command, str(output)]).exit_code == 0


@pytest.mark.parametrize(
    ("path", "value", "seal"),
    [
        ("run.inferred", 7777, False),
        ("job.adapter", "0" * 64, False),
        ("output.columns", [], False),
        ("output.sha256", None, False),
        ("digest", "0" * 64, False),
        ("run.tally.score_sum", None, True),
        ("run.engine", None, True),
        ("drift", {"previous": None}, True),
        ("job.text_column", None, True),
        ("job.limit", "many", True),
    ],
)
def test_an_edited_manifest_proves_nothing_and_is_made_anew(
    path: str, value: Any, seal: bool, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Also where its digest was made to fit a value that no run writes."""
    source, output = backlog(tmp_path / "in.parquet", rows=40), tmp_path / "out.parquet"
    outlets = ("--report", str(tmp_path / "r.html"), "--metrics", str(tmp_path / "m.prom"))
    assert route(tiny_bundle, source, output).exit_code == 0
    edited(Path(manifest_location(str(output)).path), *path.split("."), value=value, seal=seal)
    for command in ("verify", "show"):
        refused = CliRunner().invoke(main, [command, str(output)])
        assert refused.exit_code == 2 and "run batch-route again" in refused.output, refused.output
        assert "its manifest is damaged or was edited" in refused.output and refused.output.count("\n") == 1
    retried = route(tiny_bundle, source, output, "--retry-errors")
    assert retried.exit_code == 2 and "damaged or was edited" in retried.output, retried.output
    again = route(tiny_bundle, source, output, *outlets)
    assert again.exit_code == 0 and "finished before" not in again.output, again.output
    assert verified(output, source).exit_code == 0


@pytest.mark.parametrize("change", ["text", "carried", "order", "less", "more"])
def test_another_input(made: tuple[Path, Path, Path], change: str, tmp_path: Path) -> None:
    source, output, _ = made
    table = pq.read_table(source)
    columns = table.to_pydict()
    match change:
        case "text":
            columns["request"][1700] += "!"
        case "carried":
            columns["tags"][3] = ["a"]
        case "order":
            columns = {name: values[1:] + values[:1] for name, values in columns.items()}
        case "less":
            columns = {name: values[:-1] for name, values in columns.items()}
        case "more":
            columns["extra"] = columns["id"]
    pq.write_table(type(table).from_pydict(columns), tmp_path / "changed.parquet")
    result = verified(output, tmp_path / "changed.parquet")
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert verified(output, source).exit_code == 0


def test_timestamps_of_old_are_the_same_instants(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """INT96 reads without a zone, what is written in its place with one."""
    times = pa.array([datetime(2026, 1, 1), None, datetime(2026, 1, 2)])
    changed = pa.array([datetime(2026, 1, 1), None, datetime(2026, 1, 2, 0, 0, 1)])
    for name, each in (("in", times), ("other", changed)):
        nested = [[time] for time in each.to_pylist()]
        table = pa.table({"id": list("abc"), "request": ["Find it."] * 3, "at": each, "all": nested})
        pq.write_table(table, tmp_path / f"{name}.parquet", use_deprecated_int96_timestamps=True)
    assert route(tiny_bundle, tmp_path / "in.parquet", tmp_path / "out.parquet").exit_code == 0
    result = verified(tmp_path / "out.parquet", tmp_path / "in.parquet")
    assert result.exit_code == 0, result.output
    result = verified(tmp_path / "out.parquet", tmp_path / "other.parquet")
    assert result.exit_code == 2 and "column 'at'" in result.output, result.output


NAN, FAR = pa.array([float("nan")]), pa.array([400_000_000_000], pa.int64())  # seconds: the year 14645
ODD = {  # one value each, which is not equal to itself or which Python does not have
    "far": pa.StructArray.from_arrays([NAN, FAR.cast(pa.timestamp("s"))], names=["x", "t"]),
    "long": pa.StructArray.from_arrays([NAN, pa.array([1 << 62]).cast(pa.duration("s"))], names=["x", "t"]),
    "text": pa.StructArray.from_arrays([NAN, pa.array([b"\xff"]).view(pa.string())], names=["x", "t"]),
    "list": pa.array([[float("nan"), None]]),
    "map": pa.array([[("k", float("nan"))]], pa.map_(pa.string(), pa.float64())),
    "half": NAN.cast(pa.float16()),
    "time": pa.array([[34_200_123_456_789]], pa.list_(pa.int64())).cast(pa.list_(pa.time64("ns"))),
}


@pytest.mark.parametrize("changed", [None, "time", "half"])
def test_values_that_python_does_not_have_are_compared(
    changed: str | None, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Beside a NaN, and to the last nanosecond."""
    others = {
        "time": pa.array([[34_200_123_456_788]], pa.list_(pa.int64())).cast(pa.list_(pa.time64("ns"))),
        "half": pa.array([1.0], pa.float16()),
    }
    columns = {"id": ["a"], "request": ["Find it."], **ODD}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    assert route(tiny_bundle, tmp_path / "in.parquet", tmp_path / "out.parquet").exit_code == 0
    if changed:
        columns[changed] = others[changed]
        pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    result = verified(tmp_path / "out.parquet", tmp_path / "in.parquet")
    assert result.exit_code == (2 if changed else 0), result.output
    assert f"column {changed!r}" in result.output or not changed


def test_a_stores_output_is_one_on_a_disk_too(s3_bucket: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    source, copy = backlog(tmp_path / "in.parquet", rows=2500), tmp_path / "copy"
    assert route(tiny_bundle, source, f"{s3_bucket}/out").exit_code == 0
    stored = store_at(Location.of(f"{s3_bucket}/out"))
    for name in stored.names(""):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(stored.read(name) or b"")
    whole = verified(copy, source)
    assert whole.exit_code == 0 and "2500 rows" in whole.output, whole.output
    again = route(tiny_bundle, copy, tmp_path / "again.parquet", "--prefix", "new_")
    assert again.exit_code == 0, again.output
    assert pq.read_table(tmp_path / "again.parquet", columns=["id"]).equals(
        pq.read_table(source, columns=["id"])
    )
    part = min(copy.glob("_parts/*/shards/*.parquet"))
    part.rename(part.with_name("other.parquet"))
    for damaged in (verified(copy), route(tiny_bundle, copy, tmp_path / "b.parquet", "--prefix", "new_")):
        assert damaged.exit_code == 2 and part.name in damaged.output, damaged.output


MAPS = pa.array(
    [[("a", 1.0)], None, [], [("b", float("nan")), ("c", None)]], pa.map_(pa.string(), pa.float64())
)
LISTS = pa.array([[1.0], None, [], [float("nan"), None]])


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (MAPS.slice(1), MAPS.take([1, 2, 3]), True),
        (MAPS.slice(0, 3), MAPS.take([0, 2, 2]), False),
        (LISTS.slice(1), LISTS.cast(pa.large_list(pa.float32())).slice(1), True),
        (LISTS.slice(1), pa.array(LISTS.to_pylist(), pa.list_view(pa.float64())).slice(1), True),
        (LISTS.slice(2), LISTS.take([3, 2]), False),
        (pa.array([[[float("nan")], []]]), pa.array([[[], [float("nan")]]]), False),
        (pa.array([{"x": float("nan")}, None]), pa.array([{"x": float("nan")}, {"x": None}]), False),
        (pa.array([{"x": float("nan")}]), pa.array([{"y": float("nan")}]), False),
        (pa.array([[float("nan"), 1.0]], pa.list_(pa.float64(), 2)), pa.array([[float("nan"), 1.0]]), True),
        (pa.array([float("nan"), None]), pa.array([float("nan"), 0.0]), False),
        (pa.array([1, 2]), pa.array(["1", "2"]), False),
        (FAR.cast(pa.timestamp("s")), pa.array([0], pa.timestamp("ns")), False),
        (pa.array([0], pa.timestamp("us")), pa.array([0], pa.timestamp("us", "UTC")), False),
        (pa.array(["a", None]).dictionary_encode(), pa.array(["a", None], pa.large_string()), True),
        (pa.nulls(2), pa.array([None, None], pa.string()), True),
    ],
)
def test_what_is_alike(left: pa.Array, right: pa.Array, same: bool) -> None:
    assert _alike(left, right) is _alike(right, left) is same
    assert _alike(left, left) and _alike(right, right)


def test_a_file_of_that_name_is_an_input_too(tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert "Other commands" in CliRunner().invoke(main, ["--help"]).output
    assert CliRunner().invoke(main, ["verify", "--help"]).exit_code == 0
    source = backlog(tmp_path / "verify.parquet", rows=3)
    assert route(tiny_bundle, source, tmp_path / "out.parquet").exit_code == 0
