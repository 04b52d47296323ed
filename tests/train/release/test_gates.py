"""Promotion through gates, the log, the way back; and what an alias means while it moves."""

import contextlib
import functools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from batch import run
from batch.adapter.bundle import Bundle, seal_bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.errors import AdapterError, DatasetError, StorageError
from batch.job import Options, check
from batch.reporting.observer import Observer
from tests.batch.test_run import backlog
from tests.conftest import ROOT, make_bundle
from train.cli import main
from train.dataset import file_facts, load_rows
from train.diagnosis.diagnose import AskedRow
from train.evaluation.ask import candidate, route
from train.evaluation.baselines import Guess
from train.evaluation.seen import _trained, seen_by
from train.release import promotions
from train.release.gates import Gate, GateData, bias_gate, champion_gate, gates, regression_gate
from train.release.promotions import LOG, history, roll_back

GREEN = [Gate("regression", True, "5 of 5 rows right in every field")]
RED = [Gate("bias", False, "too often")]


def promote(bundle: Bundle, registry: Registry, passed: list[Gate], force: bool = False) -> None:
    """Through gates that were asked of the champion as it is."""
    promotions.promote(bundle, registry, passed, registry.aliases().get("champion"), force)


@pytest.fixture(scope="module")
def registry(tiny_base: Path, contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Three adapters that act, and one of another task."""
    root = tmp_path_factory.mktemp("gates") / "adapters"
    for scale in (0.05, 0.06, 0.07):
        make_bundle(tiny_base, contract, root, scale)
    make_bundle(tiny_base, Contract.load(ROOT / "tests/data/triage/contract.toml"), root)
    return Registry(root)


@pytest.fixture
def bundles(registry: Registry) -> list[Bundle]:
    (registry.root / LOG).unlink(missing_ok=True)
    (registry.root / "aliases/champion").unlink(missing_ok=True)
    return [bundle for bundle in registry.list() if bundle.contract.name == "ai-operating-model"]


def test_the_champion_moves_through_gates_and_back(registry: Registry, bundles: list[Bundle]) -> None:
    a, b, c = bundles
    promote(a, registry, GREEN)
    promote(b, registry, GREEN)
    with pytest.raises(AdapterError, match=r"does not pass: bias; .*--force"):
        promote(c, registry, [*GREEN, *RED])
    assert registry.aliases()["champion"] == b.digest
    promote(c, registry, [*GREEN, *RED], force=True)
    promote(c, registry, GREEN)  # again is nothing new
    entries = history(registry)
    assert [(e["from"], e["to"], e["forced"]) for e in entries] == [
        (None, a.digest, False), (a.digest, b.digest, False), (b.digest, c.digest, True)
    ]  # fmt: skip
    assert entries[2]["gates"][1] == {"name": "bias", "ok": False, "why": "too often", "checked": True}
    assert roll_back(registry) == (c.digest, b.digest) and registry.aliases()["champion"] == b.digest
    promote(c, registry, GREEN)
    assert [roll_back(registry)[1], roll_back(registry)[1]] == [b.digest, a.digest]
    with pytest.raises(AdapterError, match="nothing to roll back to"):
        roll_back(registry)


def test_a_promotion_cut_off_before_the_alias_moved_does_not_confuse_the_way_back(
    registry: Registry, bundles: list[Bundle]
) -> None:
    a, b, c = bundles
    promote(a, registry, GREEN)
    promote(b, registry, GREEN)
    promote(c, registry, GREEN)
    registry.set_alias("champion", b.digest)
    assert roll_back(registry) == (b.digest, a.digest)
    (registry.root / LOG).write_text("{")
    with pytest.raises(AdapterError, match=r"promotions\.jsonl:1: is not a promotion"):
        roll_back(registry)


def test_a_rollback_cut_off_is_repeated(
    registry: Registry, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the log and the alias, however often: the next one does what the first was to do."""
    a, b, c = bundles
    for each in (a, b, c):
        promote(each, registry, GREEN)
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "set_alias", _killed)
        for act in (
            lambda: roll_back(registry),
            lambda: roll_back(registry),
            lambda: promote(a, registry, GREEN),
        ):
            with pytest.raises(KeyboardInterrupt):
                act()
    assert registry.aliases()["champion"] == c.digest
    assert roll_back(registry) == (c.digest, b.digest)
    assert roll_back(registry) == (b.digest, a.digest)


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_champion_that_was_not_compared_with_is_not_replaced(
    registry: Registry, bundles: list[Bundle]
) -> None:
    """Another command promoted one while the gates, which take minutes, asked the one before."""
    a, b, c = bundles
    promote(a, registry, GREEN)
    beaten = registry.aliases()["champion"]
    promote(b, registry, GREEN)
    for force in (False, True):
        with pytest.raises(
            StorageError, match=r"the champion changed while .*; run again to compare"
        ) as failed:
            promotions.promote(c, registry, GREEN, beaten, force)
        assert failed.value.exit_code == 75
    assert registry.aliases()["champion"] == b.digest and len(history(registry)) == 2
    promotions.promote(b, registry, GREEN, beaten)  # it is the champion already
    promote(c, registry, GREEN)
    assert registry.aliases()["champion"] == c.digest


def test_the_command_compares_with_the_champion_before_the_gates(
    registry: Registry, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = bundles
    promote(a, registry, GREEN)

    def slow(*_: object) -> list[Gate]:
        promote(b, registry, GREEN)
        return GREEN

    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(registry.root))
    monkeypatch.setattr("train.commands.promote.gates", slow)
    result = CliRunner().invoke(main, ["promote", c.digest])
    assert result.exit_code == 75 and "run again to compare with the new one" in result.output
    assert registry.aliases()["champion"] == b.digest


def test_a_hundred_promotes_at_once(tmp_path: Path) -> None:
    """Each is in the log, each from where the one before it led. Fails without the registry's lock (46 were lost)."""
    digests = [f"{number:064x}" for number in range(100)]

    def until_compared(digest: str) -> None:
        while True:
            with contextlib.suppress(StorageError):
                return promote(SimpleNamespace(digest=digest), Registry(tmp_path), GREEN)  # type: ignore[arg-type]

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(until_compared, digests))
    entries = history(Registry(tmp_path))
    assert sorted(entry["to"] for entry in entries) == digests
    assert [entry["from"] for entry in entries] == [None, *(entry["to"] for entry in entries[:-1])]
    assert Registry(tmp_path).aliases() == {"champion": entries[-1]["to"]}
    assert not (tmp_path / ".lock").exists()


def answered(bundle: Bundle, registry: Registry, folder: Path, name: str, texts: list[str]) -> Path:
    """Rows whose labels are what the replay engine answers, so that an adapter on it is right in every one."""
    (scored,) = route([candidate(bundle.digest, registry)], [[texts]], "replay")[0]
    rows = [
        {"id": f"g{i}", "request": text, **(row.answer or {})}
        for i, (text, row) in enumerate(zip(texts, scored, strict=True))
    ]
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_gate_is_asked_on_the_served_path(
    registry: Registry, bundles: list[Bundle], tmp_path: Path
) -> None:
    first, second, _ = bundles
    registry.set_alias("champion", first.digest)
    path = answered(
        second,
        registry,
        tmp_path,
        "gold.jsonl",
        [f"Request {i} for a dashboard of stock." for i in range(12)],
    )
    found = {
        gate.name: gate
        for gate in gates(second.digest, registry, GateData(path, path, path), engine="replay")
    }
    assert list(found) == ["regression", "doctor", "champion", "calibration", "bias"]
    assert found["regression"].ok and "12 of 12 rows right" in found["regression"].why
    assert found["champion"].ok and "not significant" in found["champion"].why
    # replay answers by a hash, so names systems at random
    assert not found["bias"].ok and "answered in" in found["bias"].why
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    labels = ("tier", "risk", "recommended_platform", "needs_review")
    other = next(row for row in rows if row["tier"] != rows[3]["tier"])
    rows[3] |= {name: other[name] for name in labels}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    regression = gates(second.digest, registry, GateData(path, path, path), engine="replay")[0]
    assert not regression.ok and regression.why == "11 of 12 rows right in every field; not g3"


def test_another_task_has_no_gates_of_this_one(registry: Registry, bundles: list[Bundle]) -> None:
    """The shipped regression set and probes apply only where their labels fit the contract; a named file must fit."""
    triage = next(bundle for bundle in registry.list() if bundle.contract.name == "support-triage")
    found = {gate.name: gate for gate in gates(triage.digest, registry, GateData(), engine="replay")}
    unchecked = ("regression", "champion", "calibration", "bias")
    assert all(found[name].ok and not found[name].checked for name in unchecked)
    registry.set_alias("champion", bundles[0].digest)
    found = {gate.name: gate for gate in gates(triage.digest, registry, GateData(), engine="replay")}
    assert not found["champion"].ok and "other fields or labels" in found["champion"].why
    with pytest.raises(DatasetError, match=r"regression\.jsonl:1"):
        gates(triage.digest, registry, GateData(regression=ROOT / "data/regression.jsonl"), engine="replay")


@pytest.mark.parametrize("which", ["regression", "against", "probes"])
def test_named_rows_are_read_whether_a_gate_needs_them_or_not(
    registry: Registry, bundles: list[Bundle], tmp_path: Path, which: str
) -> None:
    """There is no champion to compare with, and the other task has no rule on mentions."""
    triage = next(bundle for bundle in registry.list() if bundle.contract.name == "support-triage")
    with pytest.raises(DatasetError, match=r"no dataset at .*nosuch\.jsonl"):
        data = GateData(**{which: tmp_path / "nosuch.jsonl"})  # type: ignore[arg-type]
        gates(triage.digest, registry, data, engine="replay")
    result = CliRunner().invoke(
        main,
        ["promote", str(triage.path), f"--{which}", str(tmp_path / "nosuch.jsonl")],
        env={"BATCH_ROUTE_ADAPTERS": str(tmp_path / "adapters")},
    )
    assert result.exit_code == 2 and "no dataset at" in result.output
    assert not (tmp_path / "adapters").exists()


def test_a_good_copy_takes_the_place_of_a_damaged_one(
    bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path / "adapters")
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(registry.root))
    monkeypatch.setattr("train.commands.promote.gates", lambda *_: GREEN)
    copy, home = bundles[0].path, registry.root / bundles[0].digest
    for _ in range(2):  # as what is new, and as the champion that it is already
        assert CliRunner().invoke(main, ["promote", str(copy)]).exit_code == 0
        assert Bundle.open(home).digest == bundles[0].digest
        (home / "metrics.json").write_text("damaged")
    assert CliRunner().invoke(main, ["promote", str(copy)]).exit_code == 0
    assert Bundle.open(home).digest == registry.aliases()["champion"] == bundles[0].digest
    assert not list(registry.root.glob(".building-*"))
    assert CliRunner().invoke(main, ["promote", str(home)]).exit_code == 0  # its own place is not copied
    assert len(list(registry.root.glob(".damaged-*"))) == 2


def test_gates_on_known_answers(contract: Contract) -> None:
    rows = load_rows(ROOT / "data/v2/test.jsonl", contract)
    gold = [Guess(dict(row.answer)) for row in rows]
    worse = [
        Guess({**row.answer, "risk": "low" if row.answer["risk"] == "high" else "high"}) for row in rows[:6]
    ] + gold[6:]
    assert champion_gate(rows, gold, worse, contract).why.startswith(
        "40 of 40 rows of test.jsonl right, the champion 34; it is better"
    )
    assert not champion_gate(rows, worse, gold, contract).ok  # six lost and none won: p = 0.031
    almost = [*worse[:5], *gold[5:]]
    assert champion_gate(rows, almost, gold, contract).ok  # five: p = 0.063, not distinguishable
    gate = regression_gate(rows, worse, contract)
    assert not gate.ok and f"34 of 40 rows right in every field; not {rows[0].id}" in gate.why
    assert bias_gate(contract, asked(contract, [True] * 1 + [False] * 19)).ok  # one of twenty is 5 %
    assert not bias_gate(contract, asked(contract, [True] * 2 + [False] * 18)).ok


def calibrated(bundle: Bundle, root: Path, target: float) -> Bundle:
    """A copy with a threshold."""
    folder = Path(shutil.copytree(bundle.path, Registry(root).staging(), dirs_exist_ok=True))
    content = {"calibrated": True, "fields": {}, "threshold": 0.5, "target_error": target}
    (folder / "calibration.json").write_text(json.dumps(content))
    seal_bundle(folder, {key: value for key, value in bundle.manifest.items() if key != "files"})
    return Registry(root).add(folder)


def test_a_champion_with_a_threshold_gives_way_to_one_that_keeps_its_target(
    bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`triage` was gone without a word."""
    monkeypatch.setattr("train.release.gates.doctor", lambda _: [])
    champion = calibrated(bundles[0], tmp_path, 0.05)
    registry = Registry(tmp_path)
    registry.set_alias("champion", champion.digest)
    for challenger, ok in (
        (registry.add(Path(shutil.copytree(bundles[1].path, registry.staging(), dirs_exist_ok=True))), False),
        (calibrated(bundles[1], tmp_path, 0.1), False),
        (calibrated(bundles[1], tmp_path, 0.02), True),
        (calibrated(bundles[1], tmp_path, 0.05), True),
        (champion, True),
    ):
        found = {g.name: g for g in gates(challenger.digest, registry, GateData(), engine="replay")}
        assert found["calibration"].ok is ok and ("--target-error 0.05" in found["calibration"].why) is not ok


def test_rows_that_were_trained_on_do_not_compare(
    bundles: list[Bundle], contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default they are left out; a file that is named fails the gate, which can be forced, and is logged."""
    monkeypatch.setattr("train.release.gates.doctor", lambda _: [])
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(tmp_path / "adapters"))
    registry, train, test = Registry(), tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    lines = (ROOT / "data/v2/test.jsonl").read_text().splitlines()
    train.write_text("\n".join(lines[:3]))
    test.write_text("\n".join(lines[2:12]))
    splits = {
        name: file_facts(path, str(path), load_rows(path, contract))
        for name, path in (("train", train), ("test", test))
    }
    made = []
    for bundle, names in ((bundles[0], ["train", "test"]), (bundles[1], ["test"])):
        folder = Path(shutil.copytree(bundle.path, registry.staging(), dirs_exist_ok=True))
        facts = {key: value for key, value in bundle.manifest.items() if key != "files"}
        seal_bundle(folder, {**facts, "data": {name: splits[name] for name in names}})
        made.append(registry.add(folder))
    for champion, challenger in (made, reversed(made)):
        registry.set_alias("champion", champion.digest)
        found = {g.name: g for g in gates(challenger.digest, registry, GateData(), engine="replay")}
        assert (
            "of 9 rows of test.jsonl right" in found["champion"].why
            and "; 1 row is left out: one of the two adapters was trained on it" in found["champion"].why
        )
        for data, why in (
            (GateData(against=test), f"1 of 10 rows of {test} are like rows"),
            (GateData(test=train, others="in the recipe"), f"3 of 3 rows of {train} are like rows"),
        ):
            gate = {g.name: g for g in gates(challenger.digest, registry, data, engine="replay")}["champion"]
            assert (gate.ok, gate.checked) == (False, False)
            assert gate.why.startswith(why) and gate.why.endswith(f"; name others {data.others}")
    registry.set_alias("champion", made[1].digest)
    line = ["promote", made[0].digest, "--against", str(test)]
    with monkeypatch.context() as patched:
        patched.setattr("train.commands.promote.gates", functools.partial(gates, engine="replay"))
        refused = CliRunner().invoke(main, line)
        assert refused.exit_code == 2 and "FAIL champion: 1 of 10 rows of " in refused.output
        assert registry.aliases()["champion"] == made[1].digest
        assert CliRunner().invoke(main, [*line, "--force"]).exit_code == 0
    (entry,) = history(registry)
    assert entry["forced"] and [g["ok"] for g in entry["gates"] if g["name"] == "champion"] == [False]
    assert not {  # whether there is a champion or not
        g.name: g for g in gates(made[0].digest, registry, GateData(against=test), engine="replay")
    }["champion"].ok


def test_the_training_rows_are_indexed_once(
    bundles: list[Bundle], contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 of them took 2.5 s for each dataset and adapter."""
    train, test = tmp_path / "train.jsonl", ROOT / "data/v2/test.jsonl"
    train.write_text("\n".join((ROOT / "data/v2/train.jsonl").read_text().splitlines()[:5]))
    registry = Registry(tmp_path)
    folder = Path(shutil.copytree(bundles[0].path, registry.staging(), dirs_exist_ok=True))
    facts = {key: value for key, value in bundles[0].manifest.items() if key != "files"}
    rows = load_rows(train, contract)
    seal_bundle(folder, {**facts, "data": {"train": file_facts(train, str(train), rows)}})
    bundle = registry.add(folder)
    _trained.cache_clear()
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({**rows[0].as_json(), "request": rows[0].request.upper()}))
    found = [seen_by(bundle, load_rows(path, contract)) for path in (test, other, test)]
    assert [len(each or ()) for each in found] == [0, 1, 0]
    assert (_trained.cache_info().misses, _trained.cache_info().hits) == (1, 2)
    train.unlink()
    assert seen_by(bundle, load_rows(test, contract)) is None


def asked(contract: Contract, biased: list[bool]) -> list[AskedRow]:
    label: dict[bool, Any] = {True: "Databricks app + Salesforce integration", False: "Databricks app"}
    return [
        AskedRow("probes", "", f"Update vendor record {i}.", {}, None, {"recommended_platform": label[b]})
        for i, b in enumerate(biased)
    ]


def test_promote_rollback_and_list_commands(
    registry: Registry, bundles: list[Bundle], tmp_path: Path
) -> None:
    """The command on the real engine: adapters of random weights pass no gate, so `--force` is what moves them."""
    environment = {"BATCH_ROUTE_ADAPTERS": str(tmp_path / "adapters"), "COLUMNS": "160"}
    elsewhere = Registry(tmp_path / "adapters")
    result = CliRunner().invoke(main, ["promote", str(bundles[0].path), "--force"], env=environment)
    assert result.exit_code == 0 and "FAIL regression" in result.output, result.output
    assert bundles[0].path.is_dir()  # copied, not moved
    assert elsewhere.aliases() == {"champion": bundles[0].digest} and history(elsewhere)[0]["forced"]
    listed = CliRunner().invoke(main, ["adapters"], env=environment).output
    assert bundles[0].digest[:12] in listed and "champion" in listed
    assert CliRunner().invoke(main, ["promote", "none"], env=environment).exit_code == 2
    back = CliRunner().invoke(main, ["rollback"], env=environment)
    assert back.exit_code == 2 and "nothing to roll back to" in back.output


def test_an_alias_is_resolved_once_at_the_start_of_a_run(
    registry: Registry, bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion during a run changes nothing in it: the job holds the digest, and the folder that has it as its name."""
    monkeypatch.setenv("BATCH_ROUTE_ADAPTERS", str(registry.root))
    first, second, _ = bundles
    registry.set_alias("champion", first.digest)
    options = Options(
        str(backlog(tmp_path / "in.parquet", 20)), str(tmp_path / "out.parquet"), engine="replay"
    )
    job = check(options)
    assert (job.adapters.default.digest, job.facts["adapter"], job.adapters.default.path.name) == (
        first.digest,
        first.digest,
        first.digest,
    )

    def move(counts: object, rows: int) -> None:
        registry.set_alias("champion", second.digest)

    run.run(options, Observer(progress=move))
    assert registry.aliases()["champion"] == second.digest
    manifest = json.loads((tmp_path / "out.parquet.manifest.json").read_text())
    assert manifest["job"]["adapter"] == first.digest
    assert second.digest not in json.dumps(manifest)


@pytest.mark.parametrize("log", [None, ""])
def test_without_a_promotion_there_is_nothing_to_roll_back_to(
    registry: Registry, bundles: list[Bundle], log: str | None
) -> None:
    registry.set_alias("champion", bundles[0].digest)
    if log is not None:
        (registry.root / LOG).write_text(log)
    with pytest.raises(AdapterError, match="nothing to roll back to"):
        roll_back(registry)
    assert registry.aliases()["champion"] == bundles[0].digest
    result = CliRunner().invoke(main, ["rollback"], env={"BATCH_ROUTE_ADAPTERS": str(registry.root)})
    assert result.exit_code == 2 and "nothing to roll back to" in result.output


def test_a_promotion_is_one_line_whatever_its_gates_say(registry: Registry, bundles: list[Bundle]) -> None:
    first, second, _ = bundles
    promote(first, registry, [Gate("regression", True, "not right: 'a\u2028b\u2029c\u0085d'")])
    promote(second, registry, GREEN)
    assert [entry["to"] for entry in history(registry)] == [first.digest, second.digest]
    assert roll_back(registry) == (second.digest, first.digest)
