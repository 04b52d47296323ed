"""Parquet in and out: what is read is what is written, and what cannot be read is refused on one line."""

import random
import signal
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
from hypothesis import HealthCheck, given, settings

from batch.contract.contract import Contract
from batch.errors import BatchRouteError, ContractError, InputError, Interrupted, StorageError
from batch.scoring.scorer import read_texts
from batch.storage import backlog as backlog_module
from batch.storage import output as table_module
from batch.storage import parquet as parquet_module
from batch.storage.backlog import Backlog, read_through
from batch.storage.manifest import manifest_version
from batch.storage.output import assemble, encode_shard, output_columns, output_schema
from batch.storage.parquet import ParquetSource
from batch.storage.writability import check_can_be_written

SECRET = "salary of Ada Lovelace"


def requests(count: int = 10, **columns: Any) -> pa.Table:
    base = {"id": [f"r{i}" for i in range(count)], "request": [f"{SECRET} {i}" for i in range(count)]}
    return pa.table({**base, **columns})


def opened(path: Path | str, *columns: str, id: str = "id") -> Backlog:
    return Backlog.open(str(path), id, "request", columns)


def whole(backlog: Backlog, start_row: int = 0, size: int = 4096) -> pa.Table:
    return pa.Table.from_batches(backlog.batches(start_row, size), backlog.schema)


def refused(act: Callable[[], Any], *parts: str) -> str:
    with pytest.raises(InputError) as error:
        act()
    message = str(error.value)
    assert "\n" not in message
    assert "; " in message, "no remedy"
    assert SECRET not in message
    for part in parts:
        assert part in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.parquet"


# The output's schema


def test_output_schema(contract: Contract) -> None:
    schema = output_schema(requests().schema, contract)
    assert schema.names == [
        *("id", "request", "tier", "risk", "recommended_platform", "needs_review", "reason"),
        *("tier_score", "risk_score", "recommended_platform_score", "needs_review_score"),
        *("tier_second", "risk_second", "recommended_platform_second", "needs_review_second"),
        *("tier_second_score", "risk_second_score", "recommended_platform_second_score"),
        "needs_review_second_score",
        *("score", "status", "error_code", "error", "adapter"),
    ]
    assert schema.names[2:] == output_columns(contract)
    assert schema.field("needs_review").type == pa.bool_() == schema.field("needs_review_second").type
    assert {schema.field(n).type for n in schema.names if n.endswith("score")} == {pa.float32()}
    assert {schema.field(n).type for n in ("tier", "reason", "error", "adapter")} == {pa.string()}
    assert output_columns(contract, "ai_")[0] == "ai_tier"


def test_a_contract_whose_columns_collide_is_refused(contract: Contract) -> None:
    raw = {**contract.raw, "fields": [*contract.raw["fields"], {"name": "status", "type": "boolean"}]}
    with pytest.raises(ContractError, match="'status'"):
        output_columns(Contract.from_dict(raw))


# What is accepted


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.null()],
    ids=str,
)
def test_text_types(path: Path, kind: pa.DataType) -> None:
    texts = ["a", None, "b", "a"] if not pa.types.is_null(kind) else [None] * 4
    column = pa.array(texts)
    column = column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "request": column}), path)
    backlog = opened(path)
    backlog.check_ids()
    (batch,) = backlog.batches()
    assert batch.schema == backlog.schema
    assert read_texts(batch, backlog.text_column) == (texts, {})


def test_invalid_utf8_is_found_row_by_row(path: Path) -> None:
    texts = pa.array([b"fine", b"\xff", None, b"\xed\xa0\x80", "é\0".encode()]).view(pa.string())
    pq.write_table(pa.table({"id": range(5), "request": texts}), path)
    backlog = opened(path)
    (batch,) = backlog.batches()
    assert read_texts(batch, backlog.text_column) == (
        ["fine", None, None, None, "é\0"],
        dict.fromkeys((1, 3), "invalid_utf8"),
    )
    assert read_texts(batch.slice(3), backlog.text_column) == ([None, "é\0"], {0: "invalid_utf8"})


@pytest.mark.parametrize("empty", [requests(0), pa.table({"id": pa.nulls(0), "request": pa.nulls(0)})])
def test_zero_rows(path: Path, tmp_path: Path, contract: Contract, empty: pa.Table) -> None:
    pq.write_table(empty, path)
    backlog = opened(path)
    assert backlog.rows == 0
    digest = backlog.check_ids()
    assert list(backlog.batches()) == []
    schema = output_schema(backlog.schema, contract)
    proof = assemble([], str(tmp_path / "out.parquet"), schema, {}, expect=(0, digest))
    assert proof.rows == 0
    assert pq.read_schema(tmp_path / "out.parquet").names == schema.names


@pytest.mark.parametrize("start", [0, 1, 99, 100, 101, 250, 299, 300, 999])
def test_starts_at_a_row_of_several_files(tmp_path: Path, start: int) -> None:
    for name, first in (("a", 0), ("b", 100), ("c", 200)):
        pq.write_table(requests(300).slice(first, 100), tmp_path / f"{name}.parquet", row_group_size=30)
    assert whole(opened(tmp_path), start, 7).equals(requests(300).slice(start))


def test_row_groups_before_the_start_are_not_read(path: Path) -> None:
    pq.write_table(
        requests(20),
        path,
        row_group_size=10,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    data = path.read_bytes().replace(b"r3", b"rX", 1)
    path.write_bytes(data)
    assert whole(opened(path), 10).num_rows == 10
    refused(opened(path).check_ids, "row group 0")


def test_directories_and_globs(tmp_path: Path) -> None:
    for name in (
        "2.parquet",
        "1.parquet",
        "_temporary/x.parquet",
        ".out.work/y.parquet",
        "deep/3.parquet",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(requests(1), tmp_path / name)
    (tmp_path / "notes.txt").write_text("about these files")

    def names(source: str) -> list[str]:
        return [Path(f.location.path).name for f in opened(f"{tmp_path}{source}").files]

    assert names("") == names("/") == names("/**/*.parquet") == ["1.parquet", "2.parquet", "3.parquet"]
    assert names("/*.parquet") == names("/[12].parquet") == names("/?.parquet") == ["1.parquet", "2.parquet"]
    assert names("/*/*.parquet") == ["3.parquet"]
    assert [f.location.path for f in opened(f"file://{tmp_path}/*.parquet").files] == [
        str(tmp_path / "1.parquet"),
        str(tmp_path / "2.parquet"),
    ]
    pq.write_table(requests(1), tmp_path / "[12].parquet")
    assert names("/[12].parquet") == ["[12].parquet"]


def test_identity_changes_with_the_input(path: Path) -> None:
    import json

    pq.write_table(requests(10), path)
    before = opened(path).identity()
    assert json.loads(json.dumps(before)) == before == opened(path).identity()
    pq.write_table(requests(10), path, row_group_size=5)
    assert opened(path).identity() != before


# What is refused


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        (
            pa.table({"id": [1], "requests": ["a"]}),
            ("no column 'request'", "did you mean 'requests'", "--text-column"),
        ),
        (pa.table({"id": [1], "request": [["a"]]}), ("'request' is list<", "not strings")),
        (pa.table({"id": [1], "request": [{"a": "b"}]}), ("'request' is struct<",)),
        (pa.table({"id": [1], "request": [b"a"]}), ("'request' is binary",)),
        (pa.table({"id": [1.5], "request": ["a"]}), ("'id' is double", "whole numbers")),
        (pa.table({"id": [1], "request": ["a"], "tier": ["x"]}), ("column 'tier'", "--prefix")),
        (pa.table([[1], ["a"], ["b"]], names=["id", "request", "request"]), ("two columns 'request'",)),
    ],
)
def test_refused_columns(path: Path, table: pa.Table, parts: tuple[str, ...]) -> None:
    pq.write_table(table, path)
    refused(lambda: opened(path, "tier"), *parts)


@pytest.mark.parametrize("kind", ["string", "large_string", "int64", "uint8", "dictionary"])
def test_refused_ids(path: Path, kind: str) -> None:
    def ids(values: list[int | None]) -> pa.Array:
        array = pa.array(values, pa.int64())
        if kind == "dictionary":
            return array.cast(pa.string()).dictionary_encode()
        return array.cast(kind)

    table = requests(6)
    pq.write_table(table.set_column(0, "id", ids([1, 2, 3, 4, 2, 6])), path)
    refused(opened(path).check_ids, "rows 1 and 4 have the same id")
    pq.write_table(table.set_column(0, "id", ids([1, 2, None, 4, 5, 6])), path)
    refused(opened(path).check_ids, "row 2 has no id")
    pq.write_table(
        table.set_column(0, "id", pa.array([b"a", b"\xff", b"c", b"d", b"e", b"f"]).view(pa.string())), path
    )
    refused(opened(path).check_ids, "not valid UTF-8")


def test_ids_whose_hashes_are_equal_are_not_duplicates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "hash", lambda value: 7, raising=False)
    pq.write_table(requests(100), path)
    read_through(opened(path))
    pq.write_table(pa.table({"id": ["a", "b", "c", "b"], "request": ["x"] * 4}), path)
    refused(lambda: read_through(opened(path)), "rows 1 and 3")


def test_the_id_digest_knows_order_and_borders_but_not_batches(tmp_path: Path) -> None:
    def digest(ids: list[Any], kind: pa.DataType | None = None, group: int = 100) -> str:
        pq.write_table(
            pa.table({"id": pa.array(ids, kind), "request": ["x"] * len(ids)}),
            tmp_path / "x",
            row_group_size=group,
        )
        return opened(tmp_path / "x").check_ids()

    assert (
        digest(["a", "b", "c"])
        == digest(["a", "b", "c"], group=1)
        == digest(["a", "b", "c"], pa.large_string())
    )
    different = [
        digest(x) for x in (["a", "b", "c"], ["b", "a", "c"], ["ab", "", "c"], ["a", "bc"], [1, 2], [2, 1])
    ]
    assert len(set(different)) == len(different)


def spoilt(name: str, path: Path) -> None:
    pq.write_table(requests(1000), path)
    data = path.read_bytes()
    match name:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "csv":
            path.write_text("id,request\n1,a\n")
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "headless":
            path.write_bytes(data[100:])
        case "footer":
            path.write_bytes(data[:-40] + b"\xff" * 32 + data[-8:])
        case "encrypted" | "encrypted, plain footer":
            keys = encryption.create_encryption_properties(
                b"0123456789abcdef", plaintext_footer=name != "encrypted"
            )
            pq.write_table(requests(1000), path, encryption_properties=keys)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("missing", "no file"),
        ("empty", "is empty"),
        ("csv", "is not a Parquet file"),
        ("truncated", "is truncated"),
        ("headless", "is not a Parquet file"),
        ("footer", "footer cannot be read"),
        ("encrypted", "is encrypted"),
        ("encrypted, plain footer", "crypt"),
    ],
)
def test_refused_files(path: Path, name: str, part: str) -> None:
    spoilt(name, path)
    refused(lambda: opened(path).check_ids(), part, path.name)


def test_refused_folders(tmp_path: Path) -> None:
    refused(lambda: opened(tmp_path), "no Parquet file matches")
    refused(lambda: opened(tmp_path / "*.parquet"), "no Parquet file matches")
    refused(lambda: opened("nosuch://x/y"), "no store is called nosuch")
    pq.write_table(requests(3), tmp_path / "a.parquet")
    pq.write_table(requests(3, team=["x"] * 3), tmp_path / "b.parquet")
    refused(lambda: opened(tmp_path), "a.parquet has no column 'team', which", "b.parquet has")
    pq.write_table(requests(3).set_column(1, "request", [[1.5] * 3]), tmp_path / "b.parquet")
    refused(lambda: opened(tmp_path), "column 'request' is double in", "b.parquet and string before it")


@pytest.mark.parametrize("checksums", [True, False])
def test_flipped_bits_end_in_one_line_or_in_rows(path: Path, checksums: bool) -> None:
    """With checksums no flip in a page gives other rows; without, none gives a traceback."""
    pq.write_table(requests(2000), path, compression="zstd", write_page_checksum=checksums)
    data, good, noticed = path.read_bytes(), requests(2000), 0
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    chance = random.Random(0)
    for _ in range(150):
        position = chance.randrange(4, len(data) - 8)
        path.write_bytes(
            data[:position] + bytes([data[position] ^ (1 << chance.randrange(8))]) + data[position + 1 :]
        )
        try:
            backlog = opened(path)
            backlog.check_ids()
            read = whole(backlog)
        except InputError as error:
            noticed += 1
            assert "\n" not in str(error)
            assert SECRET not in str(error)
        else:
            if checksums and position < footer:
                assert read.equals(good)
    assert noticed > (100 if checksums else 30)


def test_a_bomb_is_read_in_bounded_memory_and_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 MB once in the dictionary, repeated in each of 3,000 rows: 3 GB."""
    value = pa.array(["x" * (1 << 20)])
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), value)
    table = pa.table({"id": range(3000), "request": text})
    pq.write_table(table, path, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 60_000
    monkeypatch.setattr(backlog_module, "FREE_BYTES", 256 << 20)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    peak = 0
    for number, batch in enumerate(opened(path).batches()):
        peak = max(peak, pool.bytes_allocated() - before)
        assert batch.nbytes <= 17 << 20
        if number == 10:
            break
    assert peak < 100 << 20
    refused(lambda: read_through(opened(path)), "expand to more than")


def test_caps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(requests(10), path)
    monkeypatch.setattr(backlog_module, "MAX_ROWS", 9)
    refused(lambda: opened(path), "10 rows, more than 9")
    monkeypatch.setattr(backlog_module, "MAX_ROWS", 10)
    monkeypatch.setattr(backlog_module, "MAX_BYTES", 9)
    refused(lambda: opened(path), "declares more than")
    monkeypatch.undo()
    monkeypatch.setattr(parquet_module, "MOST_ROW_BYTES", 1 << 20)
    pq.write_table(requests(3).set_column(1, "request", [["x", "x" * (2 << 20), "x"]]), path)
    refused(
        lambda: list(opened(path).batches()), "row 1 holds more than 1 MiB, most of it in column 'request'"
    )


# Shards and the file that they become


def shards(folder: Path, table: pa.Table, cuts: list[int]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for start, end in zip([0, *cuts], [*cuts, table.num_rows], strict=True):
        paths.append(folder / f"{len(paths):08d}.parquet")
        paths[-1].write_bytes(encode_shard(table.slice(start, end - start)))
    return paths


def test_the_bytes_do_not_tell_where_shards_were_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked against an `assemble` that writes a row group a shard, and one without `_one_chunk`: both differ."""
    monkeypatch.setattr(table_module, "ROW_GROUP", 2000)
    monkeypatch.setattr(table_module, "GROUP_BYTES", 2_500_000)
    chance = random.Random(1)
    texts = [
        "".join(chance.choices(string.ascii_letters, k=chance.choice([0, 5, 50, 6000]))) for _ in range(2500)
    ]
    tags = pa.array([chance.choice(["a", "b", None, "c"]) for _ in texts])
    table = pa.table(
        {
            "id": range(2500),
            "request": texts,
            "tag": tags.dictionary_encode(),
            "more": [[i] * (i % 3) for i in range(2500)],
        }
    )
    outputs = []
    for cuts in ([], [1], [999, 1000, 1001], list(range(100, 2500, 100)), [2499]):
        paths = shards(tmp_path / "s", table, cuts)
        proof = assemble(paths, str(tmp_path / "out.parquet"), table.schema, {"k": "v"})
        outputs.append((tmp_path / "out.parquet").read_bytes())
        assert proof.rows == 2500
    assert len(set(outputs)) == 1
    written = pq.ParquetFile(tmp_path / "out.parquet")
    assert written.read().to_pylist() == table.to_pylist()
    assert written.metadata.metadata[b"k"] == b"v"
    assert written.metadata.num_row_groups == 2


def test_assembly_proves_or_leaves_the_old_output(tmp_path: Path) -> None:
    table = requests(100)
    pq.write_table(table, tmp_path / "in.parquet")
    expect = (100, opened(tmp_path / "in.parquet").check_ids())
    output, manifest = tmp_path / "out.parquet", tmp_path / "out.parquet.manifest.json"
    paths = shards(tmp_path / "s", table, [30, 60])
    output.write_bytes(b"old")
    manifest.write_bytes(b"old")
    for bad, why in (
        (paths[:2], "60 rows for 100"),
        ([paths[1], paths[0], paths[2]], "order"),
        ([paths[0], paths[0], paths[2]], "order"),
    ):
        with pytest.raises(StorageError, match=why):
            assemble(bad, str(output), table.schema, {}, expect=expect)
    data = bytearray(paths[1].read_bytes())
    data[60] ^= 1
    paths[1].write_bytes(data)
    with pytest.raises(StorageError, match="shard is damaged"):
        assemble(paths, str(output), table.schema, {}, expect=expect)
    assert output.read_bytes() == manifest.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.glob("*out*")) == ["out.parquet", "out.parquet.manifest.json"]
    with pytest.raises(StorageError, match="another run"):  # whose manifest the old one is
        assemble(shards(tmp_path / "s", table, [30]), str(output), table.schema, {}, expect=expect)
    assert output.read_bytes() == b"old"
    old = manifest_version(str(output))
    proof = assemble(
        shards(tmp_path / "s", table, [30]), str(output), table.schema, {}, expect=expect, replaces=old
    )
    assert (proof.rows, proof.ids) == expect
    assert not manifest.exists()
    assert proof.bytes == output.stat().st_size


def test_a_signal_while_shards_are_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended a run with 75 and "a shard is damaged" instead of 143, where it came during the assembly."""
    paths = shards(tmp_path / "s", requests(10), [5])

    def interrupted(source: object, **options: object) -> Iterator[pa.RecordBatch]:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(ParquetSource, "batches", interrupted)
    with pytest.raises(Interrupted):
        assemble(paths, str(tmp_path / "out.parquet"), requests(10).schema, {})


def test_output_pages_carry_checksums(tmp_path: Path) -> None:
    table = requests(5000)
    paths = shards(tmp_path / "s", table, [])
    for written in (paths[0], tmp_path / "out.parquet"):
        assemble(paths, str(tmp_path / "out.parquet"), table.schema, {})
        data = bytearray(written.read_bytes())
        start = pq.read_metadata(written).row_group(0).column(1)
        data[start.dictionary_page_offset + start.total_compressed_size // 2] ^= 1
        with pytest.raises((OSError, pa.ArrowException)):
            pq.read_table(pa.BufferReader(bytes(data)), page_checksum_verification=True)


def values() -> Iterator[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    text = st.text(max_size=8)
    yield pa.string(), text
    yield pa.large_string(), text
    yield pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["", "a", "é"])
    yield pa.int16(), st.integers(-(2**15), 2**15 - 1)
    yield pa.float64(), st.floats(allow_nan=False)
    yield pa.bool_(), st.booleans()
    yield pa.binary(), st.binary(max_size=8)
    yield pa.timestamp("us", "UTC"), st.integers(-(2**50), 2**50)
    yield pa.decimal128(9, 2), st.decimals(-99999, 99999, places=2)
    yield pa.list_(pa.string()), st.lists(st.none() | text, max_size=3)
    yield (
        pa.struct([("a", pa.int32()), ("b", pa.string())]),
        st.fixed_dictionaries({"a": st.integers(0, 9), "b": text}),
    )


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(0, 40))
    ids = draw(st.lists(st.text(max_size=6), min_size=count, max_size=count, unique=True))
    columns = {"id": pa.array(ids, pa.string()), "request": pa.array(["x"] * count, pa.string())}
    kinds = draw(st.lists(st.sampled_from(list(values())), max_size=4))
    for index, (kind, strategy) in enumerate(kinds):
        items = draw(st.lists(st.none() | strategy, min_size=count, max_size=count))
        name = draw(st.sampled_from(["", "a.b", "é ", '"', "list"])) + str(index)
        columns[name] = (
            pa.array(items, pa.string()).dictionary_encode()
            if pa.types.is_dictionary(kind)
            else pa.array(items, kind)
        )
    return pa.table(columns)


@given(table=tables(), group=st.integers(1, 20), size=st.integers(1, 20), cut=st.integers(0, 40))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, table: pa.Table, group: int, size: int, cut: int) -> None:
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=group)
    backlog = opened(tmp_path / "in.parquet")
    ids = backlog.check_ids()
    rows = whole(backlog, 0, size)
    paths = shards(tmp_path / "s", rows, [min(cut, table.num_rows)])
    proof = assemble(paths, str(tmp_path / "out.parquet"), backlog.schema, {}, expect=(table.num_rows, ids))
    assert proof.ids == ids
    assert pq.read_table(tmp_path / "out.parquet").equals(table)


@given(data=st.binary(max_size=200), tail=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_on_one_line(tmp_path: Path, data: bytes, tail: bool) -> None:
    (tmp_path / "in.parquet").write_bytes(
        b"PAR1" + data + (len(data).to_bytes(4, "little") + b"PAR1" if tail else b"")
    )
    with pytest.raises(BatchRouteError) as error:
        opened(tmp_path / "in.parquet").check_ids()
    assert "\n" not in str(error.value)


def test_the_part_of_a_column_that_cannot_be_written_is_named() -> None:
    """Behind many children: the column's type would be cut off before it."""
    names = [(f"a_long_name_{number}", pa.string()) for number in range(9)]
    kind = pa.list_(pa.struct([*names, ("pause", pa.month_day_nano_interval())]))
    with pytest.raises(InputError, match=r"column 'mail\[\]\.pause' is month_day_nano_interval, which"):
        check_can_be_written(pa.schema([("id", pa.string()), ("mail", kind)]))
