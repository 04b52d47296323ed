"""Judge an adapter on labelled requests, field by field, through the path that serves it.

`evaluate` is pure: gold rows and the answers to them → counts with intervals. `serve` gets the answers from the
engine. A row that ended in an error counts as wrong in every field.
"""

import dataclasses
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batch.bundle import Bundle, Registry, resolve_base
from batch.contract import Contract
from batch.engine import EngineSpec, adapter_spec
from batch.engine.process import EngineProcess
from batch.errors import AdapterError
from batch.router import Router
from batch.tokens import Renderer
from train.dataset import Row, load_rows

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile
MISSES_SHOWN = 20


class Scored(Protocol):
    """What evaluation reads of a `batch.router.ScoredRow`."""

    @property
    def answer(self) -> dict[str, Any] | None: ...
    @property
    def error_code(self) -> str | None: ...


@dataclasses.dataclass(frozen=True)
class Proportion:
    """`right` of `of`, with its 95 % Wilson score interval (Wilson 1927)."""

    right: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        if self.of == 0:
            return 0.0, 1.0
        share, n = self.right / self.of, self.of
        centre = share + Z95**2 / (2 * n)
        spread = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
        scale = 1 + Z95**2 / n
        return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.right}/{self.of}  {low:.2f} to {high:.2f}"

    def as_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "right": self.right,
            "of": self.of,
            "share": self.right / self.of if self.of else None,
            "low": low,
            "high": high,
        }


@dataclasses.dataclass(frozen=True)
class Miss:
    """One wrong field of one row. `predicted` is None where the row has no valid answer; `error` says why."""

    id: str
    request: str
    field: str
    gold: Any
    predicted: Any
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    adapter: str
    dataset: str
    measures: Mapping[str, Proportion]  # `JSON valid`, each scored field, `all fields right`, `field checks`
    misses: Sequence[Miss]

    def as_json(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter,
            "dataset": self.dataset,
            "measures": {name: proportion.as_json() for name, proportion in self.measures.items()},
            "misses": [dataclasses.asdict(miss) for miss in self.misses],
        }


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is judged: a bundle, or a base model alone under a contract."""

    name: str
    bundle: Bundle | None
    contract: Contract
    renderer: Renderer
    base: Path


def evaluate(rows: Sequence[Row], answers: Iterable[Scored], contract: Contract, adapter: str, dataset: str) -> Evaluation:
    """Compare each row with its answer, in order. Raises `ValueError` where there are not as many of them."""
    fields = [field.name for field in contract.scored_fields]
    right = dict.fromkeys(["JSON valid", *fields, "all fields right"], 0)
    misses = []
    for row, answer in zip(rows, answers, strict=True):
        values = answer.answer
        right["JSON valid"] += values is not None
        wrong = [name for name in fields if values is None or values[name] != row.answer[name]]
        for name in fields:
            right[name] += name not in wrong
        right["all fields right"] += not wrong
        for name in wrong:
            predicted = None if values is None else values[name]
            misses.append(Miss(row.id, row.request, name, row.answer[name], predicted, answer.error_code))
    measures = {name: Proportion(count, len(rows)) for name, count in right.items()}
    checks = sum(right[name] for name in ["JSON valid", *fields])  # the first experiment counted these: 19 of 20
    measures["field checks"] = Proportion(checks, len(rows) * (1 + len(fields)))
    return Evaluation(adapter, dataset, measures, misses)


def candidate(reference: str, registry: Registry, contract: str | None, base_model: str | None) -> Candidate:
    """The adapter that `reference` names, or for `base` the base model without one.

    `base` takes its contract and base model from the options, else from the champion, else the shipped ones.
    """
    if reference != "base":
        if contract:
            raise AdapterError(f"adapter {reference} carries its own contract; give --contract with base only")
        bundle = Bundle.open(registry.resolve(reference))
        return Candidate(reference, bundle, bundle.contract, bundle.renderer, bundle.resolve_base(base_model))
    champion = Bundle.open(registry.resolve("champion")) if "champion" in registry.aliases() else None
    rules = champion.contract if champion and not contract else Contract.load(contract or "data/contract.toml")
    folder = champion.resolve_base() if champion and not base_model else resolve_base(base_model or "data/mini-base")
    return Candidate("base", None, rules, Renderer.load(folder, rules), folder)


def serve(subjects: Sequence[Candidate], datasets: Sequence[Path], engine: Literal["vllm", "replay"] = "vllm") -> list[Evaluation]:
    """Route each dataset through the engine for each candidate, and judge the answers.

    Every dataset is checked before an engine starts, and candidates on one base share a warm engine. Raises
    `DatasetError`, `AdapterError`, `EngineError`.
    """
    gold = {(s.name, path): load_rows(path, s.contract, evaluation=True) for s in subjects for path in datasets}
    results = []
    for base in dict.fromkeys(subject.base for subject in subjects):
        group = [subject for subject in subjects if subject.base == base]
        spec = EngineSpec(
            kind=engine,
            base=str(base),
            tokenizer=str(base),
            max_model_len=max(subject.renderer.max_model_len for subject in group),
            max_lora_rank=max(subject.bundle.rank if subject.bundle else 1 for subject in group),
        )
        with EngineProcess(spec) as process:
            for subject in group:
                name, folder = (subject.bundle.digest, str(subject.bundle.path)) if subject.bundle else ("base", None)
                adapter = adapter_spec(name, folder, subject.contract, subject.renderer)
                process.load(adapter)
                router = Router(process, adapter, subject.contract, subject.renderer)
                texts = ([row.request for row in gold[subject.name, path]] for path in datasets)
                for path, answers in zip(datasets, router.route(texts), strict=True):
                    rows = gold[subject.name, path]
                    results.append(evaluate(rows, answers, subject.contract, subject.name, str(path)))
    return results


def show(evaluations: Sequence[Evaluation], console: Console) -> None:
    """A table for each dataset, its adapters side by side with 95 % intervals; then what each got wrong."""
    for dataset in dict.fromkeys(evaluation.dataset for evaluation in evaluations):
        group = [evaluation for evaluation in evaluations if evaluation.dataset == dataset]
        table = Table(title=f"{Path(dataset).name}, {group[0].measures['JSON valid'].of} rows", title_justify="left")
        table.add_column("right, of, 95 % interval")
        for evaluation in group:
            table.add_column(evaluation.adapter, justify="right")
        for name in dict.fromkeys(name for evaluation in group for name in evaluation.measures):
            cells = [str(e.measures[name]) if name in e.measures else "" for e in group]
            # The checks of one row depend on each other, so an interval over them would be too narrow.
            table.add_row(name, *(cell.split("  ")[0] if name == "field checks" else cell for cell in cells))
        console.print(table)
    for evaluation in evaluations:
        if evaluation.misses:
            _show_misses(evaluation, console)


def _show_misses(evaluation: Evaluation, console: Console) -> None:
    table = Table(title=f"{evaluation.adapter} on {Path(evaluation.dataset).name}: wrong", title_justify="left")
    for column, options in (("request", {"ratio": 2}), ("field", {"no_wrap": True}), ("gold", {}), ("answered", {})):
        table.add_column(column, **options)  # type: ignore[arg-type]
    previous = None
    for miss in evaluation.misses[:MISSES_SHOWN]:
        request = f"{miss.id}: {miss.request}" if miss.id != previous else ""
        answered = f"({miss.error})" if miss.error else str(miss.predicted)
        # `Text`: a request is data, and "[bold]" in it is no markup.
        table.add_row(*map(Text, (textwrap.shorten(request, 72), miss.field, str(miss.gold), answered)))
        previous = miss.id
    console.print(table)
    if len(evaluation.misses) > MISSES_SHOWN:
        console.print(f"and {len(evaluation.misses) - MISSES_SHOWN} more; --json writes all of them")


def write_json(evaluations: Sequence[Evaluation], path: Path) -> None:
    content = {"interval": "95 % Wilson score", "evaluations": [evaluation.as_json() for evaluation in evaluations]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
