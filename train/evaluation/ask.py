"""Answers to labelled requests from what is judged: adapters through the path that serves them, and
baselines.

Every dataset is checked before an engine starts, and candidates on one base share a warm engine.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from batch.adapter.base_model import check_holds, resolve_base
from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry, check_alias
from batch.adapter.renderer import Renderer
from batch.contract.contract import Contract
from batch.engine import DEFAULT_ENGINE, adapter_spec
from batch.engine.supervisor import Supervisor
from batch.errors import AdapterError
from batch.scoring.adapters import engine_spec
from batch.scoring.lane import Lane, ScoredRow
from batch.scoring.router import Requests, Router
from train.dataset import Row, load_rows, split_path
from train.evaluation.baselines import BASELINES, Baseline
from train.evaluation.evaluate import Evaluation, evaluate
from train.evaluation.seen import indexed, seen_by, seen_in


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is judged: a bundle, or a base model alone under a contract."""

    name: str
    bundle: Bundle | None
    contract: Contract
    renderer: Renderer
    base: Path


def check_chosen_alias(alias: str) -> None:
    """For before the work whose result gets the alias that a user chose. Raises `AdapterError` for one that
    no registry takes, that only a promotion moves, or that names something else here.
    """
    check_alias(alias)
    if alias == "champion":
        raise AdapterError(
            "alias champion: an adapter becomes the champion through the gates; choose another alias, then "
            "batch-train promote it"
        )
    if alias == "base" or alias in BASELINES:
        raise AdapterError(f"alias {alias}: `eval` takes it for a baseline; choose another alias")


def candidates(
    names: Iterable[str], registry: Registry, contract: str | None = None, base_model: str | None = None
) -> list[Candidate]:
    """What is named; `base` is that of the first adapter among them."""
    named = list(names)
    adapters = {name: candidate(name, registry, contract, base_model) for name in named if name != "base"}
    first = next((adapter.bundle for adapter in adapters.values()), None)
    return [adapters.get(name) or candidate(name, registry, contract, base_model, first) for name in named]


def candidate(
    reference: str,
    registry: Registry,
    contract: str | None = None,
    base_model: str | None = None,
    beside: Bundle | None = None,
) -> Candidate:
    """The adapter that `reference` names, or for `base` the base model without one.

    `base` takes its contract and base model from the options, else from the bundle `beside` it, else from the
    champion, else the shipped ones.
    """
    if reference != "base":
        if contract:
            raise AdapterError(
                f"adapter {reference} carries its own contract; give --contract with base only"
            )
        bundle = Bundle.open(registry.resolve(reference))
        return Candidate(reference, bundle, bundle.contract, bundle.renderer, bundle.resolve_base(base_model))
    like = beside
    if like is None and "champion" in registry.aliases():
        like = Bundle.open(registry.resolve("champion"))
    rules = like.contract if like and not contract else Contract.load(contract or "data/contract.toml")
    folder = like.resolve_base() if like and not base_model else resolve_base(base_model or "data/mini-base")
    renderer = Renderer.load(folder, rules)
    check_holds(folder, renderer)
    return Candidate("base", None, rules, renderer, folder)


def route(
    subjects: Sequence[Candidate],
    texts: Sequence[Sequence[Sequence[str]]],
    engine: str = DEFAULT_ENGINE,
    follow_up: Callable[[int, list[list[ScoredRow]]], Sequence[str]] | None = None,
) -> list[list[list[ScoredRow]]]:
    """Route `texts[i]`, lists of requests, for `subjects[i]`; returns the rows in the same shape. Raises
    `EngineError`.

    With `follow_up`, the answers to subject i decide one more list of requests, whose rows come last.
    """
    answers: dict[int, list[list[ScoredRow]]] = {}
    for base in dict.fromkeys(subject.base for subject in subjects):
        group = [(i, subject) for i, subject in enumerate(subjects) if subject.base == base]
        bundles = [subject.bundle for _, subject in group if subject.bundle]
        bare = [subject.renderer for _, subject in group if not subject.bundle]
        with Supervisor(engine_spec(base, bundles, bare, engine, at_once=1)) as process:  # one after another
            for i, subject in group:
                name, folder = (
                    (subject.bundle.digest, str(subject.bundle.path)) if subject.bundle else ("base", None)
                )
                adapter = adapter_spec(name, folder, subject.contract, subject.renderer)
                process.load(adapter)
                router, lane = Router(process), Lane(adapter, subject.contract, subject.renderer)
                answers[i] = list(router.route(Requests.to(lane, each) for each in texts[i]))
                if follow_up:
                    answers[i] += router.route([Requests.to(lane, follow_up(i, answers[i]))])
    return [answers[i] for i in range(len(subjects))]


def serve(
    subjects: Sequence[Candidate], datasets: Sequence[Path], engine: str = DEFAULT_ENGINE
) -> list[Evaluation]:
    """Judge each candidate on each dataset. Raises `DatasetError`, `AdapterError`, `EngineError`."""
    gold = [[load_rows(path, subject.contract, evaluation=True) for path in datasets] for subject in subjects]
    texts = [[[row.request for row in rows] for rows in each] for each in gold]
    return [
        judged(subject, rows, scored, str(path))
        for subject, each, answers in zip(subjects, gold, route(subjects, texts, engine), strict=True)
        for path, rows, scored in zip(datasets, each, answers, strict=True)
    ]


def judged(subject: Candidate, rows: Sequence[Row], answers: Sequence[ScoredRow], dataset: str) -> Evaluation:
    """The candidate's answers compared with the rows, and how many of those it was trained on, or nearly."""
    seen = seen_by(subject.bundle, rows) if subject.bundle else None
    count = None if seen is None else len(seen)
    return evaluate(rows, answers, subject.contract, subject.name, dataset, count)


def judge(
    names: Sequence[str],
    datasets: Sequence[Path],
    registry: Registry,
    contract: str | None = None,
    base_model: str | None = None,
    train: Path | None = None,
    engine: str = DEFAULT_ENGINE,
) -> list[Evaluation]:
    """Judge everything in `names`, in their order: adapters, `base`, and baselines, which learn from `train`.

    Without `train` they learn from what the first adapter among `names` learnt from.
    """
    subjects = candidates((n for n in names if n not in BASELINES), registry, contract, base_model)
    results = list(_baselines(names, datasets, subjects, contract, train))
    if subjects:
        results += serve(subjects, datasets, engine)
    return sorted(results, key=lambda result: names.index(result.adapter))


def _baselines(
    names: Sequence[str],
    datasets: Sequence[Path],
    subjects: Sequence[Candidate],
    contract: str | None,
    train: Path | None,
) -> Iterator[Evaluation]:
    chosen = [name for name in names if name in BASELINES]
    if not chosen:
        return
    rules = subjects[0].contract if subjects else Contract.load(contract or "data/contract.toml")
    bundles = [subject.bundle for subject in subjects if subject.bundle]
    if train is None and not bundles:
        raise AdapterError(
            f"{chosen[0]} learns from labelled rows; name them with --train, or an adapter beside it"
        )
    rows = load_rows(train or split_path(bundles[0], "train"), rules, evaluation=True)
    gold = {path: load_rows(path, rules, evaluation=True) for path in datasets}
    trained = indexed(rows)
    seen = {path: len(seen_in(trained, each)) for path, each in gold.items()}
    for name in chosen:
        learnt = Baseline.learn(name, rows, rules)
        for path, each in gold.items():
            answers = learnt.answer([row.request for row in each])
            yield evaluate(each, answers, rules, name, str(path), seen[path])
