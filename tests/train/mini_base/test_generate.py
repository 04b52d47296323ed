"""Generated rows: labelled by the policy table, unlike one another and what they stand beside, the same again and again."""

import itertools
import json
from pathlib import Path

from click.testing import CliRunner

from batch.contract.contract import Contract
from tests.conftest import ROOT
from train.mini_base import generate
from train.mini_base.requests import SPLITS

V3 = ROOT / "data/v3"


def test_rows_are_labelled_by_the_policy_and_unlike_one_another(contract: Contract) -> None:
    rows = list(itertools.islice(generate.labelled(contract, "train", seed=9), 300))
    for row in rows:
        assert contract.policy_mismatch({f.name: row[f.name] for f in contract.fields}, row["facts"]) is None
    beside = [row["request"] for row in rows]
    more = list(itertools.islice(generate.labelled(contract, "train", seed=9, beside=beside), 50))
    assert not {row["request"] for row in more} & set(beside)


def test_families_of_a_split_are_in_no_other(contract: Contract) -> None:
    found = [
        {
            row["family"].split(" | ")[-1]
            for row in itertools.islice(generate.labelled(contract, split, 1), 400)
        }
        for split in SPLITS
    ]
    assert all(len(families) > 10 for families in found)
    assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]


def test_v3_is_what_the_command_makes(tmp_path: Path) -> None:
    """`make v3`, of which the smallest file is made again here."""
    line = [
        "validation",
        "--rows",
        "60",
        "--seed",
        "4",
        "--with",
        str(ROOT / "data/v2/validation.jsonl"),
        "--out",
        str(tmp_path / "made.jsonl"),
    ]
    beside = [
        V3 / "train.jsonl",
        *(
            ROOT / f"data/{name}.jsonl"
            for name in ("v2/validation", "v2/test", "natural", "probes", "regression")
        ),
    ]
    done = CliRunner().invoke(
        generate.main, [*line, *(word for path in beside for word in ("--beside", str(path)))]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "made.jsonl").read_bytes() == (V3 / "validation.jsonl").read_bytes()
    assert all(
        json.loads(row)["source"] == "generated"
        for row in (tmp_path / "made.jsonl").read_text().splitlines()[40:]
    )
