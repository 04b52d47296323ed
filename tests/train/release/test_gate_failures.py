"""What stands in a promotion's way beside the answers: a champion that is gone, a typo, a damaged log."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from tests.conftest import ROOT, make_bundle
from train.cli import main
from train.release.gates import GateData, gates
from train.release.promotions import LOG, promote


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_champion_that_is_not_whole_fails_one_gate(
    tiny_base: Path, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """No adapter could take its place: `promote --force` ended in "no adapter ..." too."""
    monkeypatch.chdir(tmp_path)
    registry = Registry("adapters")
    old, new = (make_bundle(tiny_base, contract, registry.root, scale) for scale in (0.05, 0.06))
    registry.set_alias("champion", old.digest)
    if damage == "gone":
        shutil.rmtree(old.path)
    else:
        (old.path / "metrics.json").write_text("damaged")
    monkeypatch.setattr("train.release.gates.doctor", lambda _: [])
    found = {gate.name: gate for gate in gates(new.digest, registry, GateData(), engine="replay")}
    assert not found["champion"].ok and not found["champion"].checked
    assert "the champion cannot be asked: " in found["champion"].why and "--force" in found["champion"].why
    promote(new, registry, list(found.values()), registry.aliases().get("champion"), force=True)
    assert registry.aliases()["champion"] == new.digest


def test_a_typo_in_the_tasks_own_rows_fails_the_gate(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The regression gate passed: the file was taken for another task's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.release.gates.doctor", lambda _: [])
    (tmp_path / "data").mkdir()
    for name in ("regression.jsonl", "probes.jsonl"):
        lines = (ROOT / "data" / name).read_text().splitlines()
        lines[1] = lines[1].replace('"risk": ', '"risk": "un')
        (tmp_path / "data" / name).write_text("\n".join(lines))
    subject, registry = str(tiny_bundle.path), Registry("adapters")
    found = {g.name: g for g in gates(subject, registry, GateData(), engine="replay")}
    for name, file in ("regression", "regression.jsonl"), ("bias", "probes.jsonl"):
        assert not found[name].ok and f"data/{file}:2: " in found[name].why, found[name]
    (tmp_path / "data/regression.jsonl").write_bytes(b"\xff")
    regression = gates(subject, registry, GateData(), engine="replay")[0]
    assert not regression.ok and "save it as UTF-8" in regression.why


def test_what_could_not_be_promoted_is_refused_before_the_gates(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an engine was asked")

    monkeypatch.setattr("train.commands.promote.gates", never)
    (tmp_path / LOG).write_text('{"half')
    for root, message in (str(tmp_path), "is not a promotion"), ("/proc/adapters", "cannot write into"):
        environment = {"BATCH_ROUTE_ADAPTERS": root}
        for force in ([], ["--force"]):
            done = CliRunner().invoke(main, ["promote", str(tiny_bundle.path), *force], env=environment)
            assert done.exit_code == 2 and message in done.output and done.output.count("\n") == 1, (
                done.output
            )
