"""What becomes of decisions: agreement, the night's answers, the audit, the next training rows."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch.contract.contract import Contract
from batch.contract.json_text import json_line
from tests.conftest import ROOT
from tests.train.review.conftest import Output
from train.cli import main
from train.config import Config
from train.dataset import load_rows
from train.review.improve import Extended, extend
from train.review.serve import ids_in

CONTRACT = ("--contract", str(ROOT / "data/contract.toml"))
GOLD = [json.loads(line) for line in (ROOT / "data/v2/train.jsonl").read_text().splitlines()]


def decided(
    path: Path, scored: Path, changed: Set[str] = frozenset(), reviewer: str = "ann", **more: Any
) -> Path:
    """A reviewer's file on all rows of `scored`; those in `changed` get the labels of another gold row."""
    lines = []
    for row in pl.read_parquet(scored).iter_rows(named=True):
        own = GOLD[int(row["id"][1:]) % len(GOLD)]
        other = next(each for each in GOLD if each["risk"] != own["risk"])
        gold = other if row["id"] in changed else own
        lines.append(
            {
                **gold,
                "id": row["id"],
                "request": row["request"],
                "decision": "label",
                "reviewer": reviewer,
                **more,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def invoke(*line: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in line])


def test_kappa_is_the_textbooks_and_disagreements_are_a_queue(output: Output, tmp_path: Path) -> None:
    scored = output(60)
    first = decided(tmp_path / "a.jsonl", scored)
    second = decided(tmp_path / "b.jsonl", scored, {"r3", "r7", "r20"}, "bo")
    result = invoke("agreement", first, second, *CONTRACT, "--out", tmp_path / "d.jsonl")
    assert result.exit_code == 0, result.output
    a, b = ([json.loads(line)["risk"] for line in path.read_text().splitlines()] for path in (first, second))
    agree = sum(x == y for x, y in zip(a, b, strict=True)) / 60
    chance = sum((a.count(value) / 60) * (b.count(value) / 60) for value in set(a + b))
    line = next(line for line in result.output.splitlines() if line.startswith("risk:"))
    assert line.startswith(f"risk: 57 of 60 the same, kappa {(agree - chance) / (1 - chance):.2f}, ")
    low, high = (float(word) for word in line.rsplit(", ", 1)[1].split(" to "))
    assert low < (agree - chance) / (1 - chance) < high <= 1
    assert "3 requests have different labels" in result.output
    assert {json.loads(each)["id"] for each in (tmp_path / "d.jsonl").read_text().splitlines()} == {
        "r3",
        "r7",
        "r20",
    }


def test_without_a_request_in_common_there_is_no_agreement(output: Output, tmp_path: Path) -> None:
    first = decided(tmp_path / "a.jsonl", output(3))
    second = tmp_path / "b.jsonl"
    second.write_text(first.read_text().replace('"id": "r', '"id": "x'))
    result = invoke("agreement", first, second, *CONTRACT)
    assert result.exit_code == 2 and "no request in common" in result.output


def test_peoples_answers_in_a_copy_and_nothing_else_changes(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    scored, final = output(50), tmp_path / "final.parquet"
    labels = decided(tmp_path / "l.jsonl", scored, {"r1", "r2"})
    kept = labels.read_text().splitlines()[:10]
    labels.write_text("\n".join(kept) + "\n")
    before = scored.read_bytes()
    result = invoke("apply-reviews", scored, labels, final, *CONTRACT)
    assert result.exit_code == 0, result.output
    assert "50 rows, 10 answered by people, 2 of them changed" in result.output
    was, now = pl.read_parquet(scored), pl.read_parquet(final)
    assert scored.read_bytes() == before
    assert now["answered_by"].to_list() == ["ann"] * 10 + ["model"] * 40
    assert now[1, "risk"] != was[1, "risk"] and now[3, "risk"] == was[3, "risk"]
    same = [name for name in was.columns if name not in {field.name for field in contract.fields}]
    assert now.select(same).equals(was.select(same)) and now[10:].drop("answered_by").equals(was[10:])
    manifest = json.loads((tmp_path / "final.parquet.manifest.json").read_text())
    assert (
        manifest["output"]["rows"] == 50 and manifest["answered_by_people"] == 10 and manifest["changed"] == 2
    )
    assert pq.read_schema(final).names[:-1] == pq.read_schema(scored).names


@pytest.mark.parametrize("fault", ["unknown ids", "itself", "two reviewers", "no review"])
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    output: Output, tmp_path: Path, fault: str
) -> None:
    scored, final = output(5), tmp_path / "final.parquet"
    labels = [decided(tmp_path / "a.jsonl", scored)]
    if fault == "unknown ids":
        labels[0].write_text(labels[0].read_text().replace('"id": "r', '"id": "gone'))
    elif fault == "itself":
        final = scored
    elif fault == "two reviewers":
        labels.append(decided(tmp_path / "b.jsonl", scored, {"r1"}, "bo"))
    else:
        labels[0].write_text(json.dumps(GOLD[0]) + "\n")
    before = scored.read_bytes()
    result = invoke("apply-reviews", scored, *labels, final, *CONTRACT)
    assert result.exit_code == 2 and result.output.startswith("Error: ") and "Traceback" not in result.output
    assert scored.read_bytes() == before
    assert final == scored or not final.exists()


def test_the_audit_sees_what_no_score_says(output: Output, tmp_path: Path) -> None:
    """10 of 156 wrong where 5 % were promised."""
    scored = output(160, auto=156)
    wrong = {f"r{index}" for index in range(10)}
    labels = decided(tmp_path / "l.jsonl", scored, wrong, audit=True, adapter="0" * 64)
    metrics = tmp_path / "audit.prom"
    line = ("audit", scored, "--labels", labels, *CONTRACT, "--metrics", metrics)
    result = invoke(*line, "--target-error", "0.05")
    assert result.exit_code == 3
    assert "10 of 156 audited rows wrong: 0.064 (0.035 to 0.114), above the target of 0.05" in result.output
    assert 'batch_route_audit_wrong_rows{task="audit"} 10.0' in metrics.read_text()
    assert 'batch_route_audit_target_holds{task="audit"} 0.0' in metrics.read_text()
    assert invoke(*line, "--target-error", "0.1").exit_code == 0
    refused = invoke("audit", scored, "--labels", labels, *CONTRACT)
    assert refused.exit_code == 2 and "--target-error" in refused.output
    decided(labels, scored, wrong, audit=True, adapter="1" * 64)  # of another adapter's output
    assert "0 audited rows are too few" in invoke(*line, "--target-error", "0.05").output


def test_metrics_are_not_written_over_another_programs_file(output: Output, tmp_path: Path) -> None:
    scored, metrics = output(3, auto=3), tmp_path / "node.prom"
    labels = decided(tmp_path / "l.jsonl", scored, audit=True, adapter="0" * 64)
    line = ("audit", scored, "--labels", labels, *CONTRACT, "--target-error", "0.1", "--metrics", metrics)
    metrics.write_text(before := "# HELP node_load1 1m load average.\n")
    result = invoke(*line)
    assert result.exit_code == 2 and "is another program's file and would be written over" in result.output
    assert metrics.read_text() == before
    metrics.unlink()
    assert [invoke(*line).exit_code for _ in range(2)] == [0, 0]  # its own it writes again


def test_rows_that_were_not_drawn_do_not_count_in_the_audit(output: Output, tmp_path: Path) -> None:
    """They went to a person because of their score or by choice, so they say nothing of the others."""
    scored = output(60, auto=60)
    labels = decided(tmp_path / "l.jsonl", scored, {"r1"})
    result = invoke("audit", scored, "--labels", labels, *CONTRACT, "--target-error", "0.05")
    assert result.exit_code == 0 and "0 audited rows are too few" in result.output


def test_reviewed_rows_join_the_training_rows_and_never_what_measures(
    output: Output, contract: Contract, tmp_path: Path
) -> None:
    config = Config.load(ROOT / "train/mini-v2.toml")
    test = [json.loads(line) for line in (ROOT / "data/v2/test.jsonl").read_text().splitlines()]
    relabelled = {
        **next(row for row in GOLD if row["risk"] != GOLD[5]["risk"]),
        "request": GOLD[5]["request"],
        "id": "again",
    }
    fresh = {
        **GOLD[0],
        "id": "new",
        "request": "Zoologists wish to look up feeding plans written down by earlier keepers.",
    }
    rows = [fresh, {**GOLD[3], "id": "known"}, {**test[0], "id": "leak"}, relabelled]
    path = tmp_path / "reviewed.jsonl"
    path.write_text(
        "".join(json.dumps({**row, "decision": "label", "reviewer": "ann"}) + "\n" for row in rows)
    )
    made = extend(config, [path], tmp_path / "reviewed")
    assert (made.added, made.known, made.measuring) == (2, 1, 1)
    extended = load_rows(made.config.data.train, contract)
    names = {row.id for row in extended}
    assert {"new", "again"} <= names and not {"leak", "known", GOLD[5]["id"]} & names
    assert len(extended) == len(GOLD) + 1
    assert made.config.data.validation == config.data.validation
    assert extend(config, [path], tmp_path / "reviewed").config == made.config


def extended(tmp_path: Path, reviewed: list[dict[str, Any]]) -> tuple[Extended, dict[str, str]]:
    """What becomes of the reviewed rows beside data/v2, and the requests of the new training rows by id."""
    path = tmp_path / "reviewed.jsonl"
    path.write_text(
        "".join(json.dumps({**row, "decision": "label", "reviewer": "ann"}) + "\n" for row in reviewed)
    )
    made = extend(Config.load(ROOT / "train/mini-v2.toml"), [path], tmp_path / "out")
    rows = map(json.loads, Path(made.config.data.train).read_text().split("\n")[:-1])
    return made, {row["id"]: row["request"] for row in rows}


FRESH = "Zoologists wish to look up feeding plans written down by earlier keepers."


def test_an_id_that_another_training_row_has_throws_nothing_out(tmp_path: Path) -> None:
    taken = GOLD[7]["id"]
    also = {**GOLD[8], "id": f"{taken}-reviewed", "request": "Beekeepers count hives by phone each spring."}
    made, requests = extended(tmp_path, [also, {**GOLD[0], "id": taken, "request": FRESH}])
    assert (made.added, made.known, made.measuring) == (2, 0, 0)
    assert len(requests) == len(GOLD) + 2
    assert requests[taken] == GOLD[7]["request"]
    assert requests[f"{taken}-reviewed"] == also["request"]
    assert requests[f"{taken}-reviewed-2"] == FRESH


def test_an_id_that_a_measuring_row_has_costs_no_reviewed_row(tmp_path: Path) -> None:
    measuring = json.loads((ROOT / "data/v2/test.jsonl").read_text().split("\n")[0])["id"]
    made, requests = extended(tmp_path, [{**GOLD[0], "id": measuring, "request": FRESH}])
    assert (made.added, made.measuring) == (1, 0)
    assert requests[f"{measuring}-reviewed"] == FRESH and measuring not in requests


def test_a_near_twin_is_replaced_and_its_id_is_free_again(tmp_path: Path) -> None:
    other = next(row for row in GOLD if row["risk"] != GOLD[5]["risk"])
    again = {**other, "id": GOLD[5]["id"], "request": GOLD[5]["request"]}
    made, requests = extended(tmp_path, [again])
    assert made.added == 1 and len(requests) == len(GOLD) and requests[GOLD[5]["id"]] == again["request"]


@pytest.mark.parametrize(("likeness", "kept"), [("", ["r"]), ("likeness = 1.0", ["0", "1", "2", "r"])])
def test_what_is_nearly_equal_is_as_the_recipe_says(tmp_path: Path, likeness: str, kept: list[str]) -> None:
    """Three requests that differ in two words of twelve: whether they are one is the recipe's to say."""
    folder, text = (
        tmp_path / "data",
        "please reset the password of {} in the customer portal before noon today",
    )
    folder.mkdir()
    (folder / "contract.toml").write_text(
        'name = "t"\n[prompt]\nsystem = "x {fields}"\n'
        '[[fields]]\nname = "queue"\ntype = "label"\n[fields.labels]\na = "A"\nb = "B"\n'
    )
    whose = ["printer 4", "user anna", "group sales"]
    rows = [{"id": str(i), "request": text.format(each), "queue": "a"} for i, each in enumerate(whose)]
    decision = {"id": "r", "request": text.format("server prod"), "queue": "b"}
    other = {"id": "v", "request": "something else entirely here", "queue": "b"}
    for name, lines in (
        ("train", rows),
        ("validation", [other]),
        ("reviewed", [{**decision, "decision": "label", "reviewer": "ann"}]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(map(json_line, lines)))
    (folder / "recipe.toml").write_text(
        f'[base]\nmodel = "data/mini-base"\n[data]\ncontract = "{folder}/contract.toml"\n'
        f'train = "{folder}/train.jsonl"\nvalidation = "{folder}/validation.jsonl"\n{likeness}\n'
    )
    made = extend(Config.load(folder / "recipe.toml"), [folder / "reviewed.jsonl"], tmp_path / "out")
    trained = Path(made.config.data.train).read_text().splitlines()
    assert [json.loads(line)["id"] for line in trained] == kept
    assert (made.added, made.replaced, made.known, made.measuring) == (1, 4 - len(kept), 0, 0)


def bystander(tmp_path: Path, scored: Path, kind: str) -> tuple[list[Path], Path]:
    """Labels, and a FINAL that is refused."""
    labels = decided(tmp_path / "a.jsonl", scored)
    if kind == "forgotten":
        return [labels], decided(tmp_path / "b.jsonl", scored)
    if kind == "no suffix":
        return [labels], tmp_path / "final"
    if kind == "labels in a table":
        table = tmp_path / "labels.parquet"
        pl.read_ndjson(labels).write_parquet(table)
        return [labels, table], table
    final = tmp_path / "final.parquet"
    if kind == "hard link":
        final.hardlink_to(scored)
    elif kind == "another table":
        pl.DataFrame({"id": ["r0"]}).write_parquet(final)
    else:
        final.write_text("notes")
    return [labels], final


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("forgotten", "FINAL.parquet"),
        ("no suffix", "FINAL.parquet"),
        ("labels in a table", "one of the input's files"),
        ("hard link", "one of the input's files"),
        ("another table", "not a result of apply-reviews"),
        ("notes", "not a result of apply-reviews"),
    ],
)
def test_a_final_that_is_something_else_is_refused_untouched(
    output: Output, tmp_path: Path, kind: str, why: str
) -> None:
    scored = output(5)
    labels, final = bystander(tmp_path, scored, kind)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = invoke("apply-reviews", scored, *labels, final, *CONTRACT)
    assert result.exit_code == 2 and why in result.output and len(result.output.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_earlier_result_is_written_anew(output: Output, tmp_path: Path) -> None:
    scored, final = output(5), tmp_path / "final.parquet"
    labels = decided(tmp_path / "l.jsonl", scored)
    for changed in ((), {"r1"}):
        decided(labels, scored, frozenset(changed))
        result = invoke("apply-reviews", scored, labels, final, *CONTRACT)
        assert result.exit_code == 0 and f"{len(changed)} of them changed" in result.output, result.output


def test_what_is_read_is_not_written_over(output: Output, tmp_path: Path) -> None:
    scored = output(5)
    labels, linked = decided(tmp_path / "l.jsonl", scored), tmp_path / "linked"
    linked.hardlink_to(labels)
    before = labels.read_bytes()
    for line in (
        ("agreement", scored, labels, *CONTRACT, "--out", labels),
        ("agreement", "--out", linked, labels, labels, *CONTRACT),
        ("audit", scored, "--labels", labels, *CONTRACT, "--metrics", labels),
    ):
        result = invoke(*line)
        assert result.exit_code == 2 and "is one of the input's files; choose another name" in result.output
    assert labels.read_bytes() == before


def test_ids_with_strange_line_ends_in_them_are_read(tmp_path: Path) -> None:
    path, names = tmp_path / "d.jsonl", {"a\u2028b", "c\u0085d", "e"}
    path.write_text("".join(json_line({"id": name}) for name in sorted(names)) + "\n", encoding="utf-8")
    assert ids_in(path) == {(name, None) for name in names}
