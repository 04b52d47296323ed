"""Generated labelled requests: `python -m train.mini_base.generate SPLIT --rows N --seed S --beside FILE...
--out FILE`.

Facts are drawn, the contract's policy table labels them, the phrase book words them
(`train/mini_base/requests.py`). A split has families of phrases that no other split has. No row is nearly a
copy of another, or of one in the files that it is to stand beside. Rows of `--with` go in front.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from batch.contract.contract import Contract
from batch.errors import BatchRouteError, DatasetError
from train.likeness import Likeness
from train.mini_base.requests import SPLITS, Split, requests
from train.mini_base.tasks import reason

PATIENCE = 2_000  # requests in a row that are nearly copies, before the phrase book counts as used up


def labelled(
    contract: Contract, split: Split, seed: int, beside: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Rows without end, as a dataset has them. None is a near-duplicate of a request `beside` it, or of an
    earlier row.
    """
    known = Likeness()

    def is_new(text: str) -> bool:
        if any(known.near(text)):
            return False
        known.add(text)
        return True

    for text in beside:
        is_new(text)
    number = refused = 0
    for request in requests(random.Random(seed), split):
        if refused == PATIENCE:
            raise DatasetError(f"after {number} rows the {split} phrases give no new ones; ask for fewer")
        refused += 1
        facts = request.facts.as_dict()
        answer = {**contract.decide(facts), "reason": reason(request)}
        # A typing error in a system's name would teach a label without the words that its rule wants.
        if is_new(request.text) and not contract.violations(answer, request.text):
            own = {field.name: answer[field.name] for field in contract.fields}
            notes = {"facts": facts, "family": request.family, "source": "generated"}
            yield {"id": f"{split}-{seed}-{number:04d}", "request": request.text, **own, **notes}
            number += 1
            refused = 0


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


@click.command()
@click.argument("split", type=click.Choice(SPLITS))
@click.option("--rows", required=True, type=click.IntRange(min=1), help="Generated rows.")
@click.option("--seed", default=0, show_default=True)
@click.option("--with", "first", type=click.Path(path_type=Path, exists=True), help="Rows to put in front.")
@click.option(
    "--beside",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Rows that no new row may resemble.",
)
@click.option(
    "--contract", type=click.Path(path_type=Path), default=Path("data/contract.toml"), show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    split: Split,
    rows: int,
    seed: int,
    first: Path | None,
    beside: tuple[Path, ...],
    contract: Path,
    out: Path,
) -> None:
    """Write labelled requests, made up by the phrase book and labelled by the policy table."""
    try:
        kept = _lines(first) if first else []
        known = [
            json.loads(line)["request"]
            for line in [*kept, *(line for path in beside for line in _lines(path))]
        ]
        made = labelled(Contract.load(contract), split, seed, known)
        lines = [*kept, *(json.dumps(next(made), ensure_ascii=False) for _ in range(rows))]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except BatchRouteError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
