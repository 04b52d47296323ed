"""`--adapter-column`: each row goes to the bundle that it names, contracts may differ, a bad name costs its rows only."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from batch import run
from batch.adapter.bundle import Bundle, seal_bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import ContractError, InputError
from batch.job import Options, check
from batch.scoring.adapters import Adapters, Answers
from batch.storage.output import output_columns
from tests.conftest import ROOT, make_bundle


@pytest.fixture(scope="module")
def triage(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(
        tiny_base, Contract.load(ROOT / "tests/data/triage/contract.toml"), tmp_path_factory.mktemp("triage")
    )


@pytest.fixture(autouse=True)
def registry(tiny_bundle: Bundle, triage: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows name the registry's entries alone."""
    root = tmp_path / "adapters"
    root.mkdir()
    for bundle in (tiny_bundle, triage):
        (root / bundle.digest).symlink_to(bundle.path)
    Registry(root).set_alias("triage", triage.digest)
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(root))
    return root


def backlog(path: Path, names: list[str | None]) -> Path:
    columns = {
        "id": range(len(names)),
        "request": [f"request {i}" for i in range(len(names))],
        "team": pa.array(names, pa.string()),
    }
    pq.write_table(pa.table(columns), path)
    return path


def options(source: Path, bundle: Bundle, **more: object) -> Options:
    return Options(
        str(source),
        str(source.with_name("out.parquet")),
        adapter=str(bundle.path),
        adapter_column="team",
        engine="replay",
        **more,  # type: ignore[arg-type]
    )


def test_rows_get_the_answer_of_the_adapter_that_they_name(
    tiny_bundle: Bundle, triage: Bundle, tmp_path: Path
) -> None:
    names = [
        None,
        triage.digest,
        "nobody",
        tiny_bundle.digest,
        str(triage.path),  # a folder is no entry of the registry, whatever lies in it
        "triage",
    ] * 50
    summary = run.run(options(backlog(tmp_path / "in.parquet", names), tiny_bundle))
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["id"] for row in rows] == list(range(300))
    for row, name in zip(rows, names, strict=True):
        served = {None: tiny_bundle, tiny_bundle.digest: tiny_bundle, triage.digest: triage, "triage": triage}
        bundle = served.get(name)
        assert row["adapter"] == (bundle and bundle.digest)
        assert row["error_code"] == (None if bundle else "unknown_adapter")
        for contract in (tiny_bundle.contract, triage.contract):
            filled = {field.name for field in contract.fields if row[field.name] is not None}
            assert filled == (
                {field.name for field in contract.fields} if bundle and bundle.contract is contract else set()
            )
        if bundle:
            bundle.contract.serialise(row)  # raises where a value is not legal
            scores = [row[f"{field.name}_score"] for field in bundle.contract.scored_fields]
            assert row["score"] == pytest.approx(math.prod(scores), rel=1e-5)
    assert summary.tally.errors == {"unknown_adapter": 100}
    manifest = json.loads((tmp_path / "out.parquet.manifest.json").read_text())
    assert (
        manifest["job"]["adapters"]["nobody"] is None
        and manifest["job"]["adapters"]["triage"] == triage.digest
    )


def test_an_adapter_on_another_base_is_its_rows_error(
    tiny_bundle: Bundle, contract: Contract, registry: Path, tmp_path: Path
) -> None:
    other = make_bundle(ROOT / "data/mini-base", contract, registry)
    run.run(options(backlog(tmp_path / "in.parquet", [None, other.digest]), tiny_bundle))
    assert pq.read_table(tmp_path / "out.parquet")["error_code"].to_pylist() == [None, "unknown_adapter"]


def test_errors_are_retried_with_each_rows_adapter(
    tiny_bundle: Bundle, triage: Bundle, tmp_path: Path
) -> None:
    """A retry of unknown names, after nothing has changed, keeps every other row, of both contracts."""
    source = backlog(tmp_path / "in.parquet", [None, triage.digest, "nobody"] * 20)
    run.run(options(source, tiny_bundle))
    before = pq.read_table(tmp_path / "out.parquet")
    summary = run.run(options(source, tiny_bundle, retry_errors=True))
    assert summary.counts.rows == 20 and pq.read_table(tmp_path / "out.parquet").equals(before)


def test_rows_of_an_adapter_that_has_come_meanwhile_are_retried(
    tiny_bundle: Bundle, triage: Bundle, tmp_path: Path
) -> None:
    """As `docs/operations.md` tells who finds `unknown_adapter`. Fails when any change of an adapter is another job:
    nothing but a whole run could answer them."""
    source, output = backlog(tmp_path / "in.parquet", [None, "late", "nobody"] * 20), tmp_path / "out.parquet"
    run.run(options(source, tiny_bundle))
    before = pq.read_table(output).to_pylist()
    Registry().set_alias("late", tiny_bundle.digest)
    summary = run.run(options(source, tiny_bundle, retry_errors=True))
    after = pq.read_table(output).to_pylist()
    assert summary.tally.errors == {"unknown_adapter": 20} and summary.counts.rows == 40
    assert after[::3] == before[::3] and after[2::3] == before[2::3]
    assert {(row["status"], row["adapter"]) for row in after[1::3]} == {("ok", tiny_bundle.digest)}
    assert run.run(options(source, tiny_bundle)).tally == summary.tally, "the job is finished"
    for name, digest in (("late", triage.digest), ("nobody", triage.digest)):  # another; other columns
        Registry().set_alias(name, digest)
        with pytest.raises(InputError, match=f"another job's .*adapters.{name}"):
            run.run(options(source, tiny_bundle, retry_errors=True))
        Registry().set_alias("late", tiny_bundle.digest)
    assert pq.read_table(output).to_pylist() == after


def test_a_column_that_names_no_adapters_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source = backlog(tmp_path / "in.parquet", ["x"])
    with pytest.raises(InputError, match=r"no column 'tem' \(did you mean 'team'\?\)"):
        check(
            Options(
                str(source), str(tmp_path / "o.parquet"), adapter=str(tiny_bundle.path), adapter_column="tem"
            )
        )
    with pytest.raises(InputError, match="holds int64, not adapter names"):
        check(
            Options(
                str(source), str(tmp_path / "o.parquet"), adapter=str(tiny_bundle.path), adapter_column="id"
            )
        )
    with pytest.raises(InputError, match="names more than 1000"):
        check(options(backlog(tmp_path / "many.parquet", [f"n{i}" for i in range(1001)]), tiny_bundle))


def test_contracts_share_columns_or_clash(contract: Contract, tiny_bundle: Bundle, triage: Bundle) -> None:
    both = Answers.of([tiny_bundle, triage])
    assert output_columns(both)[:5] == [field.name for field in contract.fields]
    assert len(both.fields) == len({field.name for field in (*contract.fields, *triage.contract.fields)})
    other = Contract.from_dict(
        {"name": "other", "prompt": contract.raw["prompt"], "fields": [{"name": "tier", "type": "boolean"}]}
    )
    with pytest.raises(
        ContractError, match="'tier' is a label in one adapter's contract and a boolean in another's"
    ):
        Answers.of([tiny_bundle, dataclasses.replace(tiny_bundle, contract=other)])


CLASHING = {
    "another kind": {"name": "tier", "type": "boolean"},
    "an input column": {"name": "Team", "type": "boolean"},
}


@pytest.mark.parametrize("clash", sorted(CLASHING))
def test_a_contract_that_does_not_go_with_the_others_is_its_rows_error(
    clash: str, tiny_bundle: Bundle, tiny_base: Path, registry: Path, tmp_path: Path
) -> None:
    """Who may write a row must not be able to stop the night by a name."""
    prompt = tiny_bundle.contract.raw["prompt"]
    odd = Contract.from_dict({"name": "odd", "prompt": prompt, "fields": [CLASHING[clash]]})
    digest = make_bundle(tiny_base, odd, registry).digest
    for others in (None, tiny_bundle.digest):  # the default, or one that more rows name
        names = [digest, others, others]  # the clashing one is met first
        summary = run.run(options(backlog(tmp_path / "in.parquet", names), tiny_bundle, fresh=True))
        codes = pq.read_table(tmp_path / "out.parquet")["error_code"].to_pylist()
        assert codes == ["unknown_adapter", None, None]
        (note,) = summary.notes
        assert note.startswith(f"rows for adapter {digest} are errors: ")


def test_texts_before_labels_cannot_be_left_out_by_the_rows_that_name_them(
    tiny_bundle: Bundle, tiny_base: Path, registry: Path, tmp_path: Path
) -> None:
    fields = [
        {"name": "why", "type": "text", "min_chars": 10, "max_chars": 60},
        {"name": "urgent", "type": "boolean"},
    ]
    first = Contract.from_dict(
        {"name": "first", "prompt": tiny_bundle.contract.raw["prompt"], "fields": fields}
    )
    digest = make_bundle(tiny_base, first, registry).digest
    source = backlog(tmp_path / "in.parquet", [None, digest])
    run.run(options(source, tiny_bundle, reasons="none"))
    assert pq.read_table(tmp_path / "out.parquet")["error_code"].to_pylist() == [None, "unknown_adapter"]


def test_files_that_cannot_be_read_are_their_rows_error(
    tiny_bundle: Bundle, registry: Path, tmp_path: Path
) -> None:
    (registry / "aliases/odd").symlink_to("odd")
    run.run(options(backlog(tmp_path / "in.parquet", [None, "odd"]), tiny_bundle))
    assert pq.read_table(tmp_path / "out.parquet")["error_code"].to_pylist() == [None, "unknown_adapter"]


@pytest.mark.parametrize("name", [b"\xff", b"champion\xfe\n", b"x" * 5000, b"a\0b", b"\x1b[31m"])
def test_a_name_that_no_adapter_could_have(tiny_bundle: Bundle, tmp_path: Path, name: bytes) -> None:
    """Not UTF-8, too long for a path, with a NUL: its row's error, as that of any other that is not there."""
    columns = {
        "id": [1, 2],
        "request": ["a", "b"],
        "team": pa.array([None, name]).cast(pa.binary()).view(pa.string()),
    }
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    run.run(options(tmp_path / "in.parquet", tiny_bundle))
    assert pq.read_table(tmp_path / "out.parquet")["error_code"].to_pylist() == [None, "unknown_adapter"]


def test_an_adapter_with_another_bases_shapes_is_its_rows_error(
    tiny_bundle: Bundle, tiny_base: Path, tmp_path: Path
) -> None:
    """Its manifest names the same base: vLLM would end the run of all teams with a TypeError."""
    folder = tmp_path / "odd"
    shutil.copytree(tiny_bundle.path, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    wide = {name: np.tile(each, (1, 2) if ".lora_A." in name else (1, 1)) for name, each in weights.items()}
    save_file(wide, folder / "adapter_model.safetensors")
    facts = {key: value for key, value in tiny_bundle.manifest.items() if key != "files"}
    seal_bundle(folder, facts)
    odd = Bundle.open(folder)
    assert odd.base == tiny_bundle.base and not odd.fits(tiny_base) and tiny_bundle.fits(tiny_base)
    named: dict[str | None, Bundle | None] = {"ours": tiny_bundle, "theirs": odd}
    both = Adapters(tiny_bundle, "team", named).together(tiny_base, "all", lambda answers: None)
    assert both.named == {"ours": tiny_bundle, "theirs": None} and both.served == (tiny_bundle,)
