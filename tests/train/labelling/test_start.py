"""`batch-train contract init`: from other people's tables to a contract and splits that `fit` takes."""

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from batch.contract.contract import Contract
from train.cli import main
from train.config import Config
from train.dataset import check_splits, load_rows
from train.labelling.start import SPLITS

TEXTS = [
    f"my card number {i} was {what} in town {i * 7} by somebody {i * 13}"
    for i in range(30)
    for what in ("lost", "stolen")
]
LABELS = [label for _ in range(30) for label in ("card_lost", "card stolen, again")]


def table(**extra: Sequence[str | None]) -> pl.DataFrame:
    return pl.DataFrame({"text": TEXTS, "intent": LABELS, **extra})


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["contract", "init", *map(str, words)])
    return result.exit_code, result.output


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_contract_and_splits_that_fit_accepts(tmp_path: Path, kind: str) -> None:
    path, out = tmp_path / f"bank.{kind}", tmp_path / "task"
    given = table(urgent=["true", "false"] * 30)
    write: dict[str, Callable[[Path], object]] = {
        "csv": given.write_csv,
        "tsv": lambda to: given.write_csv(to, separator="\t"),
        "jsonl": given.write_ndjson,
        "parquet": given.write_parquet,
    }
    write[kind](path)
    code, said = run(
        path, "--text-column", "text", "--label-column", "intent", "--label-column", "urgent", "--out", out
    )
    assert code == 0, said
    contract = Contract.load(out / "contract.toml")
    assert [(field.name, field.values) for field in contract.fields] == [
        ("intent", ("card stolen, again", "card_lost")),
        ("urgent", ("false", "true")),
    ]
    splits = {name: load_rows(out / f"{name}.jsonl", contract) for name in ("train", "validation", "test")}
    check_splits(splits)
    rows = [row for own in splits.values() for row in own]
    assert sorted(row.request for row in rows) == sorted(TEXTS)
    assert {row.request: row.answer["intent"] for row in rows} == dict(zip(TEXTS, LABELS, strict=True))


def test_rows_nearly_alike_stay_in_one_split(tmp_path: Path) -> None:
    """Each of forty texts has a copy that changes one word of many."""
    base = [" ".join(f"w{(i * 31 + j * j) % 997}" for j in range(20)) for i in range(40)]
    texts = [text + ending for text in base for ending in (" please", " thanks")]
    path = tmp_path / "rows.csv"
    pl.DataFrame({"request": texts, "label": ["a", "a", "b", "b"] * 20}).write_csv(path)
    code, said = run(path, "--label-column", "label", "--out", tmp_path / "task")
    assert code == 0, said
    contract = Contract.load(tmp_path / "task/contract.toml")
    splits = {
        name: load_rows(tmp_path / f"task/{name}.jsonl", contract) for name in ("train", "validation", "test")
    }
    check_splits(splits)
    assert all(len(rows) >= 4 for rows in splits.values())


def test_two_rows_that_are_like_a_third_stay_with_it(tmp_path: Path) -> None:
    """Each third text is like the two before it, and those are not like each other."""
    texts = []
    for i in range(40):
        words = [f"w{(i * 31 + j * j) % 997}" for j in range(24)]
        left, right = [f"l{i}x{j}" for j in range(12)], [f"r{i}x{j}" for j in range(12)]
        texts += [" ".join([*left, *words]), " ".join([*words, *right]), " ".join(words)]
    path = tmp_path / "rows.csv"
    pl.DataFrame({"request": texts, "label": ["a", "a", "a", "b", "b", "b"] * 20}).write_csv(path)
    code, said = run(path, "--label-column", "label", "--out", tmp_path / "task")
    assert code == 0, said
    contract = Contract.load(tmp_path / "task/contract.toml")
    check_splits(
        {
            name: load_rows(tmp_path / f"task/{name}.jsonl", contract)
            for name in ("train", "validation", "test")
        }
    )


def test_texts_that_differ_in_a_sign_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    texts = [*TEXTS, "a course in C++", "a course in C#", "sales +5 %", "sales -5 %"]
    table = pl.DataFrame({"request": texts, "label": [*LABELS, *LABELS[:4]]})
    path.write_bytes(b"\xef\xbb\xbf" + table.write_csv(separator=";").encode())
    code, said = run(path, "--label-column", "label", "--out", tmp_path / "task")
    assert code == 0 and "already there" not in said, said
    contract = Contract.load(tmp_path / "task/contract.toml")
    rows = [
        row
        for name in ("train", "validation", "test")
        for row in load_rows(tmp_path / f"task/{name}.jsonl", contract)
    ]
    assert sorted(row.request for row in rows) == sorted(texts)


def test_what_cannot_be_learnt_from_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame(
        {"request": [*TEXTS, TEXTS[0].upper(), "  ", "no label"], "label": [*LABELS, LABELS[0], "x", None]}
    ).write_parquet(path)
    code, said = run(path, "--label-column", "label", "--out", tmp_path / "task")
    assert (
        code == 0
        and "2 rows without a text or a label are left out: row 62, 63" in said
        and "1 rows with a text that is already there are left out: row 61" in said
    )


def test_a_text_with_two_labels_has_none(tmp_path: Path) -> None:
    """The first of a table with a row a label won, and the others counted as copies."""
    path = tmp_path / "rows.csv"
    more = {"request": [TEXTS[3].upper(), TEXTS[3], TEXTS[5]], "label": ["urgent", LABELS[3], LABELS[5]]}
    pl.concat([table().rename({"text": "request", "intent": "label"}), pl.DataFrame(more)]).write_csv(path)
    code, said = run(path, "--label-column", "label", "--out", tmp_path / "task")
    lines = said.splitlines()
    assert code == 0 and lines[0].startswith("1 rows") and lines[0].endswith("row 63"), said
    assert lines[1].startswith("3 rows") and "`labels`" in lines[1] and lines[1].endswith("row 4, 61, 62")
    contract = Contract.load(tmp_path / "task/contract.toml")
    assert contract.fields[0].values == ("card stolen, again", "card_lost")
    rows = [row for name in SPLITS for row in load_rows(tmp_path / f"task/{name}.jsonl", contract)]
    assert sorted(row.request for row in rows) == sorted(text for text in TEXTS if text != TEXTS[3])
    pl.DataFrame({"request": TEXTS[:9] * 2, "label": ["a"] * 9 + ["b"] * 9}).write_csv(path)
    code, said = run(path, "--label-column", "label", "--out", tmp_path / "other")
    assert code == 2 and "has 0 labels without 18 rows whose text has another label too" in said


def test_texts_that_fit_would_refuse_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    longest = "word " * 1599 + "words"  # 8,000 characters
    table = pl.DataFrame({"request": [*TEXTS, longest, longest + "s"], "label": [*LABELS, *LABELS[:2]]})
    table.write_parquet(path)
    code, said = run(path, "--label-column", "label", "--out", tmp_path / "task")
    assert code == 0 and "1 rows with a text of more than 8000 characters are left out" in said
    contract = Contract.load(tmp_path / "task/contract.toml")
    rows = [row for name in SPLITS for row in load_rows(tmp_path / f"task/{name}.jsonl", contract)]
    assert sorted(row.request for row in rows) == sorted([*TEXTS, longest])


@pytest.mark.parametrize("rows", [60, 2000, 40_000])
def test_the_recipe_keeps_what_an_interrupted_fit_has_learnt(tmp_path: Path, rows: int) -> None:
    """40,000 rows had a checkpoint in 10,000 steps, and a patience that three validations never reach."""
    path, out = tmp_path / "rows.csv", tmp_path / "task"
    texts = [f"{chr(97 + i % 26)}{i} {i * 7} {i * 13}" for i in range(rows)]
    pl.DataFrame({"request": texts, "label": ["a", "b"] * (rows // 2)}).write_csv(path)
    assert run(path, "--label-column", "label", "--out", out)[0] == 0
    training = Config.load(out / "recipe.toml").training
    steps = training.epochs * rows * SPLITS["train"] / training.batch_size
    assert training.eval_every <= 1000
    assert steps / training.eval_every > 2 * training.early_stopping_patience


@pytest.mark.parametrize("rows", [2, 4])
def test_too_few_rows_for_every_split_are_refused(tmp_path: Path, rows: int) -> None:
    table().head(rows).write_csv(tmp_path / "few.csv")
    code, said = run(
        tmp_path / "few.csv", "--text-column", "text", "--label-column", "intent", "--out", tmp_path / "task"
    )
    assert code == 2 and said == (
        f"Error: {tmp_path}/few.csv: {rows} rows give no validation and no test rows; that takes three rows of "
        "the same labels at least, with texts that are not nearly equal\n"
    )
    assert not (tmp_path / "task").exists()


@pytest.mark.parametrize(
    "name", ['a "quoted" one', "back\\slash", "t\u00e4sk\u2028", "line\nend", "del\x7f", "it's"]
)
def test_names_of_any_folder_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    table().write_csv(f"{name}.csv")
    code, said = run(f"{name}.csv", "--text-column", "text", "--label-column", "intent")
    assert code == 0 and len(said.splitlines()) == 2, said
    recipe = Config.load(tmp_path / name / "recipe.toml")
    assert Contract.load(recipe.find(recipe.data.contract)).name == name
    assert recipe.data.splits() == {split: f"{name}/{split}.jsonl" for split in SPLITS}
    text = (tmp_path / name / "recipe.toml").read_text()
    calibration = next(line for line in text.split("\n") if line.startswith("# calibration"))
    assert tomllib.loads(calibration.removeprefix("# ")) == {"calibration": f"{name}/calibration.jsonl"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label-column", "intnt", "--text-column", "text"], "has no column 'intnt'"),
        (["--label-column", "same", "--text-column", "text"], "column 'same' has 1 labels"),
        (
            ["--label-column", "intent", "--label-column", "intent", "--text-column", "text"],
            "column 'intent' is named 2 times; name each column once",
        ),
        (["--label-column", "text", "--text-column", "text"], "column 'text' is named 2 times"),
        (
            ["--label-column", "Queue Name", "--text-column", "text"],
            "bank.csv: rename the column: field 'Queue Name': a name is letters, digits and underscores",
        ),
        (
            ["--label-column", "status", "--text-column", "text"],
            "bank.csv: rename the column: field 'status': that is a column of every output",
        ),
        (["--label-column", "quoted", "--text-column", "text"], "bank.csv: field 'quoted': label 'a\"b'"),
        (["--label-column", "intent", "--text-column", "text", "--out", "."], "exists; name a new folder"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    quoted = ['a"b', "c"] * 30
    table(same=["one"] * 60, status=LABELS, quoted=quoted, **{"Queue Name": LABELS}).write_csv("bank.csv")
    code, said = run("bank.csv", *words)
    assert code == 2 and message in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bank.csv"]
    assert run("none.csv", "--label-column", "x")[0] == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "t", "queue": ["a"]}\n' * 3, "a.jsonl: column 'queue' holds lists or objects"),
        (
            "a.jsonl",
            '{"text": {"t": 1}, "queue": "a"}\n' * 3,
            "a.jsonl: column 'text' holds lists or objects",
        ),
        ("a.csv", f"text,{'x' * 140_000}\na,b\n", "a.csv: has no column 'queue'"),
        ("a.csv", f"text,{'x' * (1 << 24)}x\na,b\n", "a.csv: cannot be read: field larger than field limit"),
    ],
)
def test_a_file_without_a_text_and_a_label_a_row_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    out = tmp_path / "task"
    code, said = run(tmp_path / name, "--text-column", "text", "--label-column", "queue", "--out", out)
    assert code == 2 and message in said and len(said.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_name_is_no_pattern(tmp_path: Path, kind: str) -> None:
    write = {"csv": "write_csv", "parquet": "write_parquet", "jsonl": "write_ndjson"}[kind]
    getattr(table(), write)(path := tmp_path / f"export[1].{kind}")
    getattr(table().with_columns(pl.col("intent") + " of another file"), write)(tmp_path / f"export1.{kind}")
    out = tmp_path / "task"
    code, said = run(path, "--text-column", "text", "--label-column", "intent", "--out", out)
    assert code == 0, said
    (field,) = Contract.load(out / "contract.toml").fields
    assert field.values == ("card stolen, again", "card_lost")


def test_mistakes_of_a_table_are_no_labels(tmp_path: Path) -> None:
    labels = ["access", "access ", " hardware", "hardware", " ", "\t"] * 10
    numbers = [1.0, 2.0, float("nan")] * 20
    table(queue=labels).with_columns(level=pl.Series(numbers)).write_parquet(
        path := tmp_path / "rows.parquet"
    )
    for column, own, left in (("queue", ("access", "hardware"), 20), ("level", ("1.0", "2.0"), 20)):
        out = tmp_path / column
        code, said = run(path, "--text-column", "text", "--label-column", column, "--out", out)
        assert code == 0 and f"{left} rows without a text or a label are left out" in said, said
        (field,) = Contract.load(out / "contract.toml").fields
        assert field.values == own


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (path := tmp_path / "rows.jsonl").write_text(table().write_ndjson(), encoding="utf-8-sig")
    code, said = run(path, "--text-column", "text", "--label-column", "intent", "--out", tmp_path / "task")
    assert code == 0, said


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_another_encoding_is_named(tmp_path: Path, kind: str, encoding: str) -> None:
    given = table().with_columns(pl.col("text") + " f\u00fcr M\u00fcller")
    text = given.write_csv() if kind == "csv" else json.dumps(given.to_dicts()[0], ensure_ascii=False) + "\n"
    (path := tmp_path / f"rows.{kind}").write_text(text, encoding=encoding)
    code, said = run(path, "--text-column", "text", "--label-column", "intent")
    assert code == 2 and said == f"Error: {path}: is not UTF-8 text; save it as UTF-8\n"


def test_many_rows_of_one_template_are_in_one_split(tmp_path: Path) -> None:
    """Each is nearly every other."""
    same = "does not answer to ping since this morning, please have a look and restart it if needed"
    texts = [*TEXTS, *(f"Host srv{i} in rack {i % 99} {same}" for i in range(2000))]
    labels = [*LABELS, *["net", "ops"] * 1000]
    pl.DataFrame({"request": texts, "label": labels}).write_csv(path := tmp_path / "rows.csv")
    code, said = run(path, "--label-column", "label", "--out", tmp_path / "task")
    assert code == 0, said
    sizes = [
        sum(line.count("Host srv") for line in (tmp_path / f"task/{name}.jsonl").read_text().splitlines())
        for name in SPLITS
    ]
    assert sorted(sizes) == [0, 0, 2000]
