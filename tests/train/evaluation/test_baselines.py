"""Baselines and cross-validation on the shipped rows, and on another task."""

import dataclasses
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from rich.console import Console

from batch.contract.contract import Contract
from batch.errors import DatasetError, InputError
from tests.conftest import ROOT
from tests.train.fit.test_qlora import recipe
from train.cli import main
from train.dataset import load_rows
from train.evaluation.baselines import BASELINES, WORDS, Baseline, Keywords, Tfidf
from train.evaluation.cross_validation import cross_validate_baseline, folds
from train.evaluation.evaluate import evaluate
from train.evaluation.from_scored import read_scored
from train.evaluation.task import task
from train.fit.folds import cross_validate_recipes, prepare_folds
from train.likeness import signs, words

TRIAGE = ROOT / "tests/data/triage"


def test_many_words_take_no_more_memory() -> None:
    """A number for each word and value: 20,000 rows of 150 labels took tens of gigabytes."""
    texts = [f"first{n} second{n} third{n} fourth{n}" for n in range(9000)]
    vectors = Tfidf(texts[:2], ["a", "b"]).pipeline(texts)[0].fit_transform(texts)
    assert vectors.shape == (9000, WORDS)


def test_a_method_that_reads_beats_one_that_does_not(contract: Contract) -> None:
    learnt, gold = (
        load_rows(ROOT / "data/v2/train.jsonl", contract),
        load_rows(ROOT / "data/natural.jsonl", contract),
    )
    right = {}
    for name in BASELINES:
        answers = Baseline.learn(name, learnt, contract).answer([row.request for row in gold])
        right[name] = {
            measure: p.count
            for measure, p in evaluate(gold, answers, contract, name, "natural").measures.items()
        }
        assert right[name]["schema-valid"] == len(gold)
    for field in ("tier", "risk", "recommended_platform"):
        assert right["majority"][field] < right["keywords"][field] < right["tfidf"][field]
    commonest = Counter(row.answer["tier"] for row in learnt).most_common(1)[0][0]
    assert right["majority"]["tier"] == sum(row.answer["tier"] == commonest for row in gold)


def test_another_task_with_values_that_training_never_shows() -> None:
    contract = Contract.load(TRIAGE / "contract.toml")
    rows = load_rows(TRIAGE / "train.jsonl", contract)
    calm = [row for row in rows if not row.answer["angry"]]
    for name in BASELINES:
        answers = Baseline.learn(name, calm, contract).answer([row.request for row in rows])
        assert {answer.answer["angry"] for answer in answers} == {False}
        contract.serialise({**answers[0].answer, "summary": "In a few words"})


def test_folds_judge_each_row_once_and_learn_from_the_others(contract: Contract) -> None:
    rows = load_rows(ROOT / "data/v2/train.jsonl", contract)
    parts = folds(rows, contract, 5)
    assert sorted(i for _, judged in parts for i in judged) == list(range(len(rows)))
    assert all(
        not set(learn) & set(judged) and len(learn) + len(judged) == len(rows) for learn, judged in parts
    )
    platforms = [Counter(rows[i].answer["tier"] for i in judged) for _, judged in parts]
    assert (
        max(p["Trusted Functional Builder"] for p in platforms)
        - min(p["Trusted Functional Builder"] for p in platforms)
        <= 3
    )
    with pytest.raises(DatasetError, match="choose from 2 to"):
        folds(rows[:3], contract, 4)
    result = cross_validate_baseline("tfidf", rows, contract, parts, "v2")
    seen = evaluate(
        rows,
        Baseline.learn("tfidf", rows, contract).answer([row.request for row in rows]),
        contract,
        "tfidf",
        "v2",
    )
    # it learnt by heart
    assert result.measures["all fields right"].count < seen.measures["all fields right"].count


def test_an_adapter_is_fitted_again_for_each_fold(
    tiny_base: Path, tmp_path: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only once, though the cross-validation is cut off in the second recipe and run again."""
    dataset = ROOT / "data/v1/test.jsonl"
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "adapters"))
    parts = folds(load_rows(dataset, contract), contract, 2)
    first = recipe(tiny_base, tmp_path)
    second = dataclasses.replace(first, training=dataclasses.replace(first.training, max_steps=4))
    prepared = [(prepare_folds(each, dataset), parts) for each in (first, second)]
    with pytest.raises(KeyboardInterrupt):
        cross_validate_recipes(prepared, CutOff(file=io.StringIO()), "replay")
    out = io.StringIO()
    results = cross_validate_recipes(prepared, Console(file=out, width=200), "replay")
    assert [result.measures["parsed"].of for result in results] == [4, 4]
    told = [line for line in out.getvalue().splitlines() if ", fold " in line]
    assert [line.partition(": ")[2] for line in told] == [*["fitted already"] * 3, "2 rows"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"recipe.toml", "bases"}  # where every fit looks for them; the folds' adapters are gone


class CutOff(Console):
    """A terminal at which somebody presses Ctrl-C as the second recipe's second fold begins."""

    folds = 0

    def print(self, *told: Any, **style: Any) -> None:
        self.folds += ", fold " in str(told[0])
        if self.folds == 4:
            raise KeyboardInterrupt
        super().print(*told, **style)


def test_near_copies_share_a_fold(contract: Contract) -> None:
    rows = load_rows(ROOT / "data/v2/train.jsonl", contract)[:100]
    copies = [dataclasses.replace(row, id=f"{row.id}-b", request=f"{row.request} Thanks.") for row in rows]
    parts = folds([*rows, *copies], contract, 5)
    assert sorted(i for _, judged in parts for i in judged) == list(range(200))
    for learn, judged in parts:
        assert {i % 100 for i in learn}.isdisjoint(i % 100 for i in judged)
    alike = [dataclasses.replace(rows[0], request=f"{rows[0].request} {i}") for i in range(3)]
    with pytest.raises(DatasetError, match="choose from 2 to 3"):
        folds([*rows[1:3], *alike], contract, 4)
    with pytest.raises(DatasetError) as refused:
        folds(alike, contract, 2)
    assert "choose from" not in str(refused.value) and str(alike[0].path) in str(refused.value)


def test_answers_of_another_kind_are_another_task() -> None:
    """One of some labels, and several of the same: their contracts were taken for comparable."""

    def of(name: str, kind: str) -> Contract:
        field = {"name": "topic", "type": kind, "labels": {"a": "", "b": ""}}
        return Contract.from_dict({"name": name, "prompt": {"system": "x {fields}"}, "fields": [field]})

    assert task(of("one", "label")) == task(of("other", "label")) != task(of("one", "labels"))


def test_folds_are_refused_where_their_adapters_have_no_place(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message named a folder that the user had not."""
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", "/proc/adapters")
    with pytest.raises(InputError, match=r"into /proc/: .*BATCH_ROUTE_ADAPTERS"):
        prepare_folds(recipe(tiny_base, tmp_path), ROOT / "data/v1/test.jsonl")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("typo", "no dataset at typo.jsonl"),
        ("few", "into 4 folds; choose from 2 to 3"),
        ("leak", "the request is nearly that of leak.jsonl:3"),
        ("labels", "b.toml has other fields or labels than"),
        ("base", "nosuch"),
    ],
)
def test_a_cross_validation_is_refused_before_its_first_fit(
    tiny_base: Path,
    tmp_path: Path,
    contract: Contract,
    monkeypatch: pytest.MonkeyPatch,
    spoil: str,
    message: str,
) -> None:
    """Whatever is wrong with the last dataset, recipe or fold: the first fit took hours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "adapters"))
    good = recipe(tiny_base, tmp_path).path
    datasets, recipes = [str(ROOT / "data/v1/test.jsonl")], [str(good)]
    rows = [json.loads(line) for line in (ROOT / "data/v1/test.jsonl").read_text().splitlines()]
    leak = json.loads((ROOT / "data/v1/validation.jsonl").read_text().splitlines()[0])
    text = good.read_text()
    if spoil == "typo":
        datasets.append("typo.jsonl")
    elif spoil in ("few", "leak"):
        datasets.append(f"{spoil}.jsonl")
        chosen = rows[:3] if spoil == "few" else [*rows[:2], {**leak, "id": "other"}, *rows[2:]]
        Path(datasets[1]).write_text("".join(json.dumps(row) + "\n" for row in chosen))
    else:
        recipes.append("b.toml")
        if spoil == "labels":
            text = text.replace(str(ROOT / "data/contract.toml"), str(TRIAGE / "contract.toml"))
        Path("b.toml").write_text(text.replace(str(tiny_base), "nosuch") if spoil == "base" else text)
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(main, ["eval", ",".join(recipes), *datasets, "--cross-validate", "4"])
    assert result.exit_code == 2 and message in result.output and len(result.output.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


SCRIPTS = {
    "Chinese": (
        ["服务器宕机无法登录", "打印机卡纸不能打印", "发票金额有误请更正"],
        ["昨天下午", "今天早上", "办公室里", "三楼", "财务部", "我的同事说", "请尽快处理", "急", "从上周开始", "又一次"],
    ),
    "Thai": (
        ["เครื่องเซิร์ฟเวอร์ล่มเข้าไม่ได้", "เครื่องพิมพ์กระดาษติด", "ใบแจ้งหนี้ยอดเงินผิด"],
        ["เมื่อวานนี้", "เช้านี้", "ที่ออฟฟิศ", "ชั้นสาม", "ฝ่ายบัญชี", "เพื่อนร่วมงานบอกว่า", "ด่วน", "อีกแล้ว", "ตั้งแต่สัปดาห์ก่อน", "กรุณาช่วยด้วย"],
    ),
    "Hindi": (
        ["सर्वर बंद है लॉगिन नहीं होता", "प्रिंटर में काग़ज़ फँस गया", "बिल की राशि ग़लत है"],
        ["कल शाम से", "आज सुबह", "दफ़्तर में", "तीसरी मंज़िल पर", "लेखा विभाग में", "साथी ने कहा कि", "जल्दी कीजिए", "फिर से", "पिछले हफ़्ते से", "कृपया देखिए"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_text_without_spaces_is_more_than_one_word(script: str) -> None:
    """Each clause was one word that no other text has, and what learnt from words was at chance."""
    whats, wheres = SCRIPTS[script]
    joint = " " if script == "Hindi" else ""
    texts = [
        f"{where}{joint}{what}{joint}{other}"
        for what in whats
        for where in wheres
        for other in wheres
        if where != other
    ]
    labels = [what for what in whats for where in wheres for other in wheres if where != other]
    apart = [i for i in range(len(texts)) if i % 90 < 81]  # the last place is in front of no text learnt from
    judged = [i for i in range(len(texts)) if i % 90 >= 81]
    for method in (Tfidf, Keywords):
        learnt = method([texts[i] for i in apart], [labels[i] for i in apart])
        right = sum(
            answer == labels[i]
            for answer, i in zip(learnt.predict([texts[i] for i in judged]), judged, strict=True)
        )
        assert right >= 0.9 * len(judged)


def test_a_vowel_sign_is_a_part_of_its_word() -> None:
    text = "पासवर्ड काम नहीं कर रहा"
    assert words(text) == signs(text) == text.split()


def scored(path: Path, rows: list, **columns: list) -> Path:  # type: ignore[type-arg]
    """An output file as `batch-route` writes it, with the gold answers in it."""
    table = pl.DataFrame(
        [{"id": row.id, "request": row.request, **row.answer, "error_code": None} for row in rows],
        infer_schema_length=None,
    )
    table.with_columns(*(pl.Series(name, values) for name, values in columns.items())).write_parquet(path)
    return path


def test_a_scored_file_is_judged_by_id(contract: Contract, tmp_path: Path) -> None:
    gold = ROOT / "data/regression.jsonl"
    rows = load_rows(gold, contract)
    risks = [row.answer["risk"] for row in rows][1:]
    path = scored(
        tmp_path / "out.parquet",
        rows[1:],
        risk=["low", *risks[1:]],
        error_code=[None, None, None, "truncated"],
    )
    report = tmp_path / "eval.json"
    arguments = [
        "eval",
        "--from-scored",
        str(path),
        str(gold),
        "--contract",
        str(ROOT / "data/contract.toml"),
        "--json",
        str(report),
    ]
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    (evaluation,) = json.loads(report.read_text())["evaluations"]
    wrong = risks[0] != "low"
    assert evaluation["adapter"] == "out.parquet" and evaluation["measures"]["parsed"]["count"] == 3
    assert evaluation["measures"]["risk"]["count"] == 3 - wrong
    errors = {miss["id"]: miss["error"] for miss in evaluation["misses"] if miss["field"] == "tier"}
    assert errors == {rows[0].id: "absent", rows[4].id: "truncated"}


def test_a_scored_file_that_does_not_fit_is_refused(contract: Contract, tmp_path: Path) -> None:
    rows = load_rows(ROOT / "data/regression.jsonl", contract)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no PAR1")
    twice, other = (
        scored(tmp_path / "twice.parquet", [rows[0], rows[0]]),
        scored(tmp_path / "other.parquet", rows, request=["x"] * 5),
    )
    for path, message in (
        (tmp_path / "broken.parquet", "is truncated"),
        (twice, "an id twice"),
        (tmp_path / "none.parquet", "No such file"),
    ):
        with pytest.raises(InputError, match=message):
            read_scored(path)
    with pytest.raises(InputError, match="--id-column"):
        read_scored(other, "key")
    for path, gold, message in (
        (other, "regression.jsonl", "another request"),
        (other, "probes.jsonl", "none of the ids"),
    ):
        result = CliRunner().invoke(
            main,
            [
                "eval",
                "--from-scored",
                str(path),
                str(ROOT / "data" / gold),
                "--contract",
                str(ROOT / "data/contract.toml"),
            ],
        )
        assert result.exit_code == 2 and message in result.output
    result = CliRunner().invoke(main, ["eval", "champion", "rows.jsonl", "--cross-validate", "3"])
    assert result.exit_code == 2 and "is already trained" in result.output


def test_a_scored_file_is_judged_where_the_texts_are_the_same(contract: Contract, tmp_path: Path) -> None:
    """Ids that begin again each night matched other tickets, unless the texts' column was called `request`."""
    gold = ROOT / "data/regression.jsonl"
    rows = load_rows(gold, contract)
    out = tmp_path / "out.parquet"
    line = ["eval", str(gold), "--from-scored", str(out), "--contract", str(ROOT / "data/contract.toml")]
    for texts, options, message in (
        ([row.request for row in rows], ["--text-column", "body"], "5/5"),
        (
            [f"Another ticket, {row.id}" for row in rows],
            ["--text-column", "body"],
            "has another request than in",
        ),
        ([None] * 5, ["--text-column", "body"], "has another request than in"),
        ([row.request for row in rows], [], "has no column of texts, so rows are found by id alone"),
    ):
        scored(out, rows, body=texts)
        pl.read_parquet(out).drop("request").with_columns(pl.col("body").cast(pl.String)).write_parquet(out)
        result = CliRunner().invoke(main, [*line, *options])
        assert result.exit_code == (2 if "another" in message else 0) and message in result.output, (
            result.output
        )


def test_rows_that_were_learnt_from_are_told(contract: Contract, tmp_path: Path) -> None:
    """Nearly all right, and not a word."""
    train, test, out = ROOT / "data/v1/train.jsonl", ROOT / "data/v1/test.jsonl", tmp_path / "eval.json"
    mixed = tmp_path / "mixed.jsonl"
    known = json.loads(train.read_text().splitlines()[0])
    mixed.write_text(test.read_text() + json.dumps({**known, "id": "m", "request": known["request"].upper()}))
    line = ["eval", "tfidf", *map(str, (train, test, mixed)), "--train", str(train), "--json", str(out)]
    result = CliRunner().invoke(main, [*line, "--contract", str(ROOT / "data/contract.toml")])
    assert result.exit_code == 0
    told = json.loads(out.read_text())["evaluations"]
    assert [(each["seen_in_training"], each["measures"]["parsed"]["of"]) for each in told] == [
        (24, 24),
        (0, 4),
        (1, 5),
    ]
    warned = result.stderr.splitlines()
    assert (
        len(warned) == 2
        and f"24 of 24 rows of {train} " in warned[0]
        and f"1 of 5 rows of {mixed} " in warned[1]
    )


@pytest.mark.parametrize("name", ["gold.csv", "gold.parquet", "gold.JSONL"])
def test_every_form_of_gold_rows_judges_a_scored_file_alone(
    contract: Contract, tmp_path: Path, name: str
) -> None:
    rows = load_rows(ROOT / "data/regression.jsonl", contract)
    table = pl.DataFrame([{"id": row.id, "request": row.request, **row.answer} for row in rows])
    write = {".csv": "write_csv", ".parquet": "write_parquet", ".JSONL": "write_ndjson"}
    gold = tmp_path / name
    getattr(table, write[gold.suffix])(gold)
    out = scored(tmp_path / "out.parquet", rows)
    words = ["eval", str(gold), "--from-scored", str(out), "--contract", str(ROOT / "data/contract.toml")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0 and "5/5" in result.output, result.output
