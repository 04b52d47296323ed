"""Help with labelling: what `lint` finds in spoilt rows, and which rows `candidates` puts forward."""

import dataclasses
import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from batch.contract.contract import Contract
from batch.errors import DatasetError
from tests.conftest import ROOT
from train.cli import main
from train.commands.label import adapters_of, told
from train.dataset import Row, load_rows
from train.labelling.candidates import candidates
from train.labelling.lint import Finding, label_errors, lint

CONTRACT = ("--contract", str(ROOT / "data/contract.toml"))


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_shipped_rows_have_no_errors() -> None:
    for version in ("v1", "v2"):
        splits = [ROOT / f"data/{version}/{split}.jsonl" for split in ("train", "validation", "test")]
        result = command("lint", *splits, *CONTRACT)
        assert result.exit_code == 0 and "no errors" in result.output, result.output


def test_each_kind_of_finding(contract: Contract, tmp_path: Path) -> None:
    rows = lines(ROOT / "data/v1/train.jsonl")
    rows[4]["needs_review"] = not rows[4]["needs_review"]  # what the policy table does not give
    copy = {**rows[0], "id": "copy", "request": rows[0]["request"] + " Please."}
    train = write(tmp_path / "train.jsonl", [*rows, copy])
    test = write(
        tmp_path / "test.jsonl",
        [{**rows[1], "id": "leak"}, {**rows[2], "request": "Something else entirely, please."}],
    )
    found = lint([train, test], contract)
    kinds = {(each.kind, each.where.rpartition("/")[2]) for each in found}
    assert {
        ("refused", "train.jsonl:5"),
        ("near-duplicate", "train.jsonl:25"),
        ("leak", "test.jsonl:1"),
        ("refused", "test.jsonl:2"),
    } <= kinds
    assert [each.error for each in found] == sorted((each.error for each in found), reverse=True)
    balance = [each.message for each in found if each.kind == "balance"]
    assert balance == []  # v1 has three rows of each value at least
    rare = write(
        tmp_path / "rare.jsonl", [row for row in rows if "ServiceNow" not in row["recommended_platform"]]
    )
    assert any(
        "'Databricks app + ServiceNow integration' (0)" in each.message for each in lint([rare], contract)
    )
    (tmp_path / "backlog.jsonl").write_text('{"id": "1", "request": "no label"}\n')
    assert {each.kind for each in lint([tmp_path / "backlog.jsonl"], contract)} == {"refused"}
    result = command("lint", train, test, *CONTRACT, "--json", tmp_path / "found.json")
    assert (
        result.exit_code == 2
        and "3 lines that training refuses" in result.output
        and "policy table" in result.output
    )
    assert len(lines_of_json(tmp_path / "found.json")) == len(found)
    with pytest.raises(DatasetError, match="no dataset"):
        lint([tmp_path / "none.jsonl"], contract)


def lines_of_json(path: Path) -> list[Any]:
    content: list[Any] = json.loads(path.read_text())
    return content


def test_swapped_labels_are_found_out_of_fold(contract: Contract, tmp_path: Path) -> None:
    """Ten rows of v2 get another row's whole answer, which the policy cannot object to. Chance would find one in 17."""
    rows = lines(ROOT / "data/v2/train.jsonl")
    spoilt = random.Random(1).sample(range(len(rows)), 10)
    labels = ("tier", "risk", "recommended_platform", "needs_review")
    for i in spoilt:
        other = next(row for row in rows if row["tier"] != rows[i]["tier"])
        rows[i] = {**rows[i], **{name: other[name] for name in labels}}
        del rows[i]["facts"]
    path = write(tmp_path / "spoilt.jsonl", rows)
    found = label_errors(load_rows(path, contract), contract)
    suspected = list(dict.fromkeys(int(each.where.rpartition(":")[2]) - 1 for each in found))
    assert len(set(spoilt) & set(suspected)) >= 8
    assert len(set(spoilt) & set(suspected[:15])) >= 5  # and they come first: chance would put one there


@pytest.fixture
def scored(contract: Contract) -> pl.DataFrame:
    """Natural requests with their gold answers at score 0.99; five doubtful ones, five that name no system, an error."""
    rows = lines(ROOT / "data/natural.jsonl")[:100]
    table = [
        {**{k: v for k, v in row.items() if k != "facts"}, "score": 0.99, "error_code": None} for row in rows
    ]
    for i in range(5):
        table[10 + i]["score"] = 0.3 + i / 100
        table[30 + i] |= {
            "tier": "Trusted Technical Builder",
            "recommended_platform": "Databricks app + Salesforce integration",
        }
    names = [field.name for field in contract.fields]
    table[50] |= {**dict.fromkeys(names), "score": None, "error_code": "truncated"}
    return pl.DataFrame(table, infer_schema_length=None)


def test_the_rows_most_worth_labelling(contract: Contract, scored: pl.DataFrame, tmp_path: Path) -> None:
    labelled = load_rows(ROOT / "data/v2/train.jsonl", contract)
    chosen = candidates(scored, Path("out.parquet"), labelled, contract, 20, "id", "request")
    ids = [row["id"] for row in chosen]
    assert len(set(ids)) == 20
    doubtful = {scored["id"][i] for i in (50, *range(10, 15))}
    broken = {scored["id"][i] for i in range(30, 35) if "Salesforce" not in scored["request"][i]}
    assert doubtful | broken <= set(ids) and ids[0] == scored["id"][50]  # no answer is the greatest doubt
    by_id = {row["id"]: row for row in chosen}
    assert by_id[scored["id"][50]]["why"][0] == "error truncated"
    assert "breaks salesforce_must_be_mentioned" in by_id[next(iter(broken))]["why"]
    novel = [float(row["why"][-1].split()[-1]) for row in chosen[2::3][:3]]
    assert novel == sorted(novel, reverse=True)


def test_candidates_are_rows_once_they_are_filled_in(
    contract: Contract, scored: pl.DataFrame, tmp_path: Path
) -> None:
    scored.write_parquet(tmp_path / "out.parquet")
    out = tmp_path / "next.jsonl"
    result = command(
        "candidates",
        tmp_path / "out.parquet",
        "-n",
        12,
        "--labelled",
        ROOT / "data/v2/train.jsonl",
        "--out",
        out,
        *CONTRACT,
    )
    assert result.exit_code == 0 and "12 rows" in result.output, result.output
    with pytest.raises(DatasetError, match=r"next\.jsonl:1"):
        load_rows(out, contract)  # nobody has looked yet
    rows = [
        {**row, **row["suggested"]}
        for row in lines(out)
        if None not in row["suggested"].values() and "breaks" not in str(row["why"])
    ]
    assert len(load_rows(write(tmp_path / "filled.jsonl", rows), contract)) == len(rows) >= 6
    printed = command("candidates", tmp_path / "out.parquet", "-n", 3, *CONTRACT)
    assert len(printed.output.splitlines()) == 3
    refused = command("candidates", tmp_path / "out.parquet", "--text-column", "body", *CONTRACT)
    assert refused.exit_code == 2 and "--text-column" in refused.output


@pytest.mark.parametrize("kind", ["jsonl", "label-studio"])
def test_labels_that_somebody_filled_in_are_not_written_over(
    scored: pl.DataFrame, tmp_path: Path, kind: str
) -> None:
    scored.write_parquet(tmp_path / "out.parquet")
    out = tmp_path / "next.json"
    line = ("candidates", tmp_path / "out.parquet", "--format", kind, "--out", out, *CONTRACT, "-n")
    for count in (2, 3):  # its own it replaces
        assert command(*line, count).exit_code == 0
    text = out.read_text()
    if kind == "jsonl":
        first, rest = text.split("\n", 1)
        filled = json.dumps({**json.loads(first), "risk": "low"}) + "\n" + rest
    else:
        (first, *others) = json.loads(text)
        filled = json.dumps([{**first, "annotations": []}, *others])
    for content in (filled, "my own notes", "{}", "3"):
        out.write_text(content)
        result = command(*line, 2)
        assert (result.exit_code, result.output) == (
            2,
            f"Error: {out} holds labels, or is another file; choose another --out\n",
        )
        assert out.read_text() == content
    out.write_text("")
    assert command(*line, 3).exit_code == 0 and out.read_text() == text


def test_near_copies_are_chosen_once(contract: Contract, scored: pl.DataFrame) -> None:
    twice = pl.concat([scored, scored.with_columns(pl.col("id") + "-b", pl.col("request") + " Thanks.")])
    chosen = candidates(twice, Path("out.parquet"), [], contract, 60, "id", "request")
    assert len({row["id"].removesuffix("-b") for row in chosen}) == len(chosen) == 60


def test_a_mistake_of_a_whole_file_is_told_three_times_and_counted() -> None:
    many = [Finding("refused", f"rows.jsonl:{line}", "unknown key 'department'") for line in range(1, 501)]
    lines = list(told([*many, Finding("refused", "other.jsonl:7", "unknown key 'department'")]))
    assert lines == [
        *map(str, many[:3]),
        "other.jsonl:7: refused: unknown key 'department'",
        "rows.jsonl: refused: unknown key 'department' (and in 497 more lines)",
    ]


def test_what_is_read_is_not_written_over(scored: pl.DataFrame, tmp_path: Path) -> None:
    scored.write_parquet(table := tmp_path / "out.parquet")
    rows = write(tmp_path / "rows.jsonl", lines(ROOT / "data/v2/train.jsonl")[:20])
    contract = tmp_path / "contract.toml"
    contract.write_bytes((ROOT / "data/contract.toml").read_bytes())
    (tmp_path / "leads-there.jsonl").symlink_to(rows)
    (tmp_path / "linked.jsonl").hardlink_to(rows)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for line in (
        ("lint", rows, *CONTRACT, "--json", rows),
        ("lint", "--json", rows, rows, *CONTRACT),
        ("lint", tmp_path / "leads-there.jsonl", *CONTRACT, "--json", rows),
        ("lint", rows, *CONTRACT, "--json", tmp_path / "linked.jsonl"),
        ("lint", rows, "--contract", contract, "--json", contract),
        ("candidates", table, *CONTRACT, "--labelled", rows, "--out", rows),
        ("candidates", table, *CONTRACT, "--out", table),
    ):
        result = command(*line)
        assert result.exit_code == 2 and "is one of the input's files; choose another name" in result.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_is_written_among_the_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write(tmp_path / "rows.jsonl", lines(ROOT / "data/v2/train.jsonl")[:20])
    champion = tmp_path / "adapters/aliases/champion"
    champion.parent.mkdir(parents=True)
    champion.write_text("x")
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "adapters"))
    result = command("lint", rows, *CONTRACT, "--json", champion)
    assert result.exit_code == 2 and "lies in the registry's folder; choose another place" in result.output
    assert champion.read_text() == "x"


def test_what_fit_refuses_of_the_training_rows_is_an_error(contract: Contract, tmp_path: Path) -> None:
    rows = lines(ROOT / "data/v2/train.jsonl")[:20]
    for lacking in ("id", "reason"):
        short = write(
            tmp_path / "short.jsonl", [{k: v for k, v in row.items() if k != lacking} for row in rows]
        )
        whole = write(tmp_path / "whole.jsonl", lines(ROOT / "data/v2/test.jsonl"))
        found = [each for each in lint([short, whole], contract) if each.error]
        assert [each.message for each in found] == [f"missing key {lacking!r}; add it"] * 20
        assert not [each for each in lint([whole, short], contract) if each.error]  # these measure
    twice = write(
        tmp_path / "twice.jsonl", [*rows, {**rows[3], "id": "x", "request": rows[3]["request"].upper()}]
    )
    found = [each for each in lint([twice], contract) if each.kind in ("refused", "near-duplicate")]
    assert list(map(str, found)) == [f"{twice}:21: refused: the request is also at {twice}:4"]


def test_a_leak_is_found_behind_a_nearer_twin(contract: Contract, tmp_path: Path) -> None:
    """Likeness 0.65 to a training row, 0.85 to a row of its own file."""
    words = [f"w{i}" for i in range(20)]
    trained, twin, leak = (" ".join(own) for own in (
        words, [*words[2:16], "x1", "x2", "x3", "x4", "x5"], [*words[:16], "x1", "x2", "x3", "x4"],
    ))  # fmt: skip
    row = lines(ROOT / "data/v2/train.jsonl")[0]
    train = write(tmp_path / "train.jsonl", [{**row, "request": trained}])
    test = write(
        tmp_path / "test.jsonl", [{**row, "id": n, "request": t} for n, t in (("b", twin), ("c", leak))]
    )
    found = {each.kind: each for each in lint([train, test], contract)}
    assert found["leak"].where == f"{test}:2" and f"{train}:1 (likeness 0.65)" in found["leak"].message
    assert f"{test}:1 (likeness 0.85)" in found["near-duplicate"].message


def one_label() -> Contract:
    field = {"name": "urgency", "type": "label", "labels": {"low": "", "high": ""}}
    return Contract.from_dict({"name": "t", "prompt": {"system": "x {fields}"}, "fields": [field]})


def backlog(requests: list[str]) -> pl.DataFrame:
    columns = {
        "id": [str(i) for i in range(len(requests))],
        "request": requests,
        "urgency": ["low"] * len(requests),
    }
    return pl.DataFrame({**columns, "score": [0.9] * len(requests), "error_code": [None] * len(requests)})


def labelled(tmp_path: Path, contract: Contract, requests: list[str]) -> list[Row]:
    rows = [{"id": str(i), "request": text, "urgency": "low"} for i, text in enumerate(requests)]
    return load_rows(write(tmp_path / "labelled.jsonl", rows), contract)


def test_a_text_of_a_script_without_spaces_can_be_known(tmp_path: Path) -> None:
    """Each sentence was one word, and as novel as any other; so the first ones of the file were chosen."""
    contract = one_label()
    known = labelled(tmp_path, contract, ["服务器昨天宕机，请尽快处理", "打印机卡纸，不能打印文件"])
    table = backlog(["昨天服务器又宕机了，请处理", "打印机不能打印文件了", "我想申请两周的年假"])
    chosen = candidates(table, Path("out.parquet"), known, contract, 3, "id", "request")
    novelty = {row["id"]: float(row["why"][-1].removeprefix("novelty ")) for row in chosen}
    assert max(novelty["0"], novelty["1"]) < 0.8 < novelty["2"]


def test_many_rows_and_many_labelled_ones_do_not_take_the_memory_of_all_pairs(tmp_path: Path) -> None:
    contract, chance = one_label(), random.Random(2)
    words = [f"w{i}" for i in range(4000)]
    texts = [f"please {' '.join(chance.choices(words, k=12))}" for _ in range(3000)]
    known = labelled(tmp_path, contract, texts)
    table = backlog([*(f"{text} thanks" for text in texts * 2), "something else"])
    table = table.with_columns(pl.col("request") + pl.int_range(pl.len()).mod(2).cast(pl.String))
    tracemalloc.start()
    chosen = candidates(table, Path("out.parquet"), known, contract, 5, "id", "request")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row["request"] for row in chosen] == ["something else0"]
    assert peak < 80e6  # it was 115 MB


@pytest.mark.parametrize("kinds", [1, 4])
def test_rows_of_few_templates_get_all_other_findings(tmp_path: Path, kinds: int) -> None:
    """It ended with 2, for nearly equal rows share a fold: there were fewer groups of them than folds."""
    whats = ["reset the password of user", "order a laptop for person", "print the page", "book the room"]
    rows = [
        {"id": f"{what}{i}", "request": f"Please {what} {i} as I asked you before", "urgency": "low"}
        for what in whats[:kinds]
        for i in range(10)
    ]
    path = write(tmp_path / "rows.jsonl", [*rows, {"id": "x", "request": "No label"}])
    found = lint([path], one_label())
    assert Counter(each.kind for each in found) == {
        "refused": 1,
        "near-duplicate": 9 * kinds,
        "balance": 1,
    }
    assert label_errors(load_rows(write(path, rows), one_label()), one_label()) == []


def test_which_adapter_wrote_an_output_is_read_alone(scored: pl.DataFrame, tmp_path: Path) -> None:
    """Beside a column of ids and texts that were all read twice."""
    out = tmp_path / "out.parquet"
    for column, digests in (
        (pl.Series(["a" * 64] * 100).cast(pl.Categorical), {"a" * 64}),
        (pl.Series(["a" * 64, "b" * 64] * 50), {"a" * 64, "b" * 64}),
        (pl.Series([["a"]] * 100), set()),
    ):
        scored.with_columns(adapter=column).write_parquet(out)
        table = adapters_of(out)
        assert table.columns == ["adapter"] and set(table["adapter"]) == digests
        assert len(table) == len(digests)
    scored.write_parquet(out)
    assert adapters_of(out).is_empty()


def test_a_long_label_is_cut_in_a_hint() -> None:
    label = "Access " * 60
    field = {"name": "queue", "type": "label", "labels": {label: "", "other": ""}}
    contract = Contract.from_dict({"name": "t", "prompt": {"system": "x {fields}"}, "fields": [field]})
    texts = [f"{what} {i} now" for i in range(20) for what in ("reset password", "order laptop")]
    rows = [
        Row(str(i), text, {"queue": "other" if i % 2 else label}, None, Path("rows.jsonl"), i)
        for i, text in enumerate(texts)
    ]
    rows[0] = dataclasses.replace(rows[0], answer={"queue": "other"})
    (finding,) = label_errors(rows, contract)
    assert label[:60] in finding.message and len(finding.message) < 300


def test_candidates_of_texts_without_words(contract: Contract, scored: pl.DataFrame, tmp_path: Path) -> None:
    emoji = scored.head(3).with_columns(request=pl.Series(["\U0001f44d", "\U0001f389 \U0001f389", "5 ?"]))
    (row,) = load_rows(
        write(tmp_path / "l.jsonl", [{**lines(ROOT / "data/v2/train.jsonl")[0], "request": "\U0001f44d !"}]),
        contract,
    )
    chosen = candidates(emoji, Path("out.parquet"), [row], contract, 5, "id", "request")
    assert {each["request"]: each["why"][-1] for each in chosen} == {
        "\U0001f389 \U0001f389": "novelty 1.00",
        "5 ?": "novelty 1.00",
    }
