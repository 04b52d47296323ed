"""`--adapter-column`: each row goes to the bundle that it names, contracts may differ, a bad name costs its rows only."""

import dataclasses
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch import run
from batch.adapter.bundle import Bundle
from batch.contract.contract import Contract
from batch.errors import ContractError, InputError
from batch.job import Options, check
from batch.scoring.adapters import Answers
from batch.storage.output import output_columns
from tests.conftest import ROOT, make_bundle


@pytest.fixture(scope="module")
def triage(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(
        tiny_base, Contract.load(ROOT / "tests/data/triage/contract.toml"), tmp_path_factory.mktemp("triage")
    )


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
        str(triage.path),
        "nobody",
        str(tiny_bundle.path),
        "../../etc/passwd",
        str(triage.path),
    ] * 50
    summary = run.run(options(backlog(tmp_path / "in.parquet", names), tiny_bundle))
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["id"] for row in rows] == list(range(300))
    for row, name in zip(rows, names, strict=True):
        bundle = {None: tiny_bundle, str(tiny_bundle.path): tiny_bundle, str(triage.path): triage}.get(name)
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
        and manifest["job"]["adapters"][str(triage.path)] == triage.digest
    )


def test_an_adapter_on_another_base_is_its_rows_error(
    tiny_bundle: Bundle, contract: Contract, tmp_path: Path
) -> None:
    other = make_bundle(ROOT / "data/mini-base", contract, tmp_path)
    run.run(options(backlog(tmp_path / "in.parquet", [None, str(other.path)]), tiny_bundle))
    assert pq.read_table(tmp_path / "out.parquet")["error_code"].to_pylist() == [None, "unknown_adapter"]


def test_errors_are_retried_with_each_rows_adapter(
    tiny_bundle: Bundle, triage: Bundle, tmp_path: Path
) -> None:
    """A retry of unknown names, after nothing has changed, keeps every other row, of both contracts."""
    source = backlog(tmp_path / "in.parquet", [None, str(triage.path), "nobody"] * 20)
    run.run(options(source, tiny_bundle))
    before = pq.read_table(tmp_path / "out.parquet")
    summary = run.run(options(source, tiny_bundle, retry_errors=True))
    assert summary.counts.rows == 20 and pq.read_table(tmp_path / "out.parquet").equals(before)


def test_a_column_that_names_no_adapters_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    source = backlog(tmp_path / "in.parquet", ["x"])
    with pytest.raises(InputError, match=r"no column 'tem' \(did you mean 'team'\?\)"):
        check(
            Options(
                str(source), str(tmp_path / "o.parquet"), adapter=str(tiny_bundle.path), adapter_column="tem"
            )
        )
    with pytest.raises(InputError, match="holds int64, no adapter names"):
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
