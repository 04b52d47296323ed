"""What an adapter has to pass to become the champion.

    regression   every row of the regression set right in every field
    doctor       every check of `train.doctor` passes
    champion     on a dataset not worse than the champion beyond chance (exact McNemar on all fields right)
    calibration  a threshold for the champion's target error or less, where that has one, or `triage` goes
    bias         no label without its words in more than `BOUND` of the hand-written probes; without any, of
    contrast probes

A gate without data that fits the contract passes and says that it checked nothing: another task has other
gates. Data of which some rows fit and others do not fails its gate.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from batch.adapter.bundle import Bundle
from batch.adapter.registry import Registry
from batch.contract.contract import Contract
from batch.engine import DEFAULT_ENGINE
from batch.errors import AdapterError, BatchRouteError, ContractError, DatasetError
from train.dataset import Row, load_rows, read_rows, split_path
from train.diagnosis.contrast import mention_rules, probes
from train.diagnosis.diagnose import BOUND, asked_probes, asked_rows, bias
from train.doctor import doctor
from train.evaluation.ask import Candidate, candidate, route
from train.evaluation.evaluate import ALL, compare, evaluate
from train.evaluation.seen import seen_by
from train.evaluation.task import task

# used where their labels fit the contract
REGRESSION, PROBES = Path("data/regression.jsonl"), Path("data/probes.jsonl")


@dataclasses.dataclass(frozen=True)
class Gate:
    name: str
    ok: bool
    why: str
    checked: bool = True

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'} {self.name}: {self.why}"


@dataclasses.dataclass(frozen=True)
class GateData:
    """Where the gates' rows come from; None is a default that applies only where it fits the contract."""

    regression: Path | None = None
    against: Path | None = None  # rows to beat the champion on; by default the adapter's own test split
    probes: Path | None = None
    test: Path | None = None  # in place of the adapter's own test split
    others: str = "with --against"  # how the user names other rows to compare on

    @property
    def named(self) -> Sequence[Path]:
        """Those that the caller named: they must be sound, whether a gate needs them or not."""
        return [path for path in (self.regression, self.against, self.probes) if path is not None]


def gates(reference: str, registry: Registry, data: GateData, engine: str = DEFAULT_ENGINE) -> list[Gate]:
    """Every gate, passed or not. Raises `DatasetError` for data named by the caller that do
    not fit.
    """
    subject = candidate(reference, registry)
    assert subject.bundle is not None
    champion, broken = _champion(registry, subject.bundle.digest)
    named: dict[Path | None, list[Row]] = {
        path: load_rows(path, subject.contract, evaluation=True) for path in data.named
    }
    comparable = champion is not None and task(champion.contract) == task(subject.contract)
    found: dict[str, list[Row] | DatasetError] = {
        "regression": named.get(data.regression) or _rows(REGRESSION, subject.contract),
        "against": named.get(data.against)
        or (_rows(data.test or _test_split(subject.bundle), subject.contract) if comparable else []),
        "bias": (named.get(data.probes) or _rows(PROBES, subject.contract))
        if mention_rules(subject.contract)
        else [],
    }
    chosen = {name: [] if isinstance(rows, DatasetError) else rows for name, rows in found.items()}
    seen = _seen(chosen["against"], subject, champion)
    versus = broken or _not_compared(champion, comparable, chosen["against"], len(seen), data)
    chosen["against"] = [] if versus else [row for row in chosen["against"] if row.id not in seen]
    contrast = [] if chosen["bias"] else probes(subject.contract)
    texts = [
        [*([row.request for row in rows] for rows in chosen.values()), [probe.request for probe in contrast]]
    ]
    subjects = [subject]
    if champion and chosen["against"]:
        subjects.append(champion)
        texts.append([[row.request for row in chosen["against"]]])
    routed = route(subjects, texts, engine)
    answers = dict(zip((*chosen, "contrast"), routed[0], strict=True))
    asked = asked_rows("probes", chosen["bias"], answers["bias"]) or asked_probes(
        contrast, answers["contrast"]
    )
    return [
        _unreadable("regression", found["regression"])
        or regression_gate(chosen["regression"], answers["regression"], subject.contract),
        doctor_gate(subject.bundle),
        _unreadable("champion", found["against"])
        or versus
        or champion_gate(chosen["against"], answers["against"], routed[1][0], subject.contract, len(seen)),
        calibration_gate(champion, subject.bundle.calibration.target_error),
        _unreadable("bias", found["bias"]) or bias_gate(subject.contract, asked),
    ]


def foreseen(
    contract: Contract,
    registry: Registry,
    data: GateData,
    rows: Sequence[Row],
    target: float | None,
    how: str,
) -> list[Gate]:
    """For before a fit: the gates that an adapter of this contract will not pass, whatever it answers.

    It is to be compared on `rows`. `target` is the target error of its threshold, if it can have one; `how`
    says, with a place for the target, how it gets another.
    """
    champion, broken = _champion(registry)
    comparable = champion is not None and task(champion.contract) == task(contract)
    versus = broken or _not_compared(champion, comparable, rows, len(_seen(rows, champion)), data)
    found = [*([versus] if versus else []), calibration_gate(champion, target, how)]
    return [gate for gate in found if not gate.ok]


def _champion(registry: Registry, subject: str | None = None) -> tuple[Candidate | None, Gate | None]:
    """Who is to be beaten, if it is not `subject`; the gate that fails instead where it cannot be asked."""
    digest = registry.aliases().get("champion")
    if not digest or digest == subject:
        return None, None
    try:
        return candidate(digest, registry), None
    except (AdapterError, ContractError) as error:
        why = f"the champion cannot be asked: {error}; promote --force puts another in its place"
        return None, Gate("champion", False, why, checked=False)


def _seen(rows: Sequence[Row], *candidates: Candidate | None) -> set[str]:
    """Ids of the rows that one of the candidates was trained on, or nearly."""
    bundles = [each.bundle for each in candidates if each and each.bundle]
    return {row.id for bundle in bundles for row in (rows and seen_by(bundle, rows)) or ()}


def _rows(default: Path | None, contract: Contract) -> list[Row] | DatasetError:
    """A default file's rows; none where it is another task's, all of whose rows are wrong here; or what is
    wrong with a row of this task's.
    """
    if default is None or not default.exists():
        return []
    try:
        return load_rows(default, contract, evaluation=True)
    except DatasetError as error:
        return error if _is_for(contract, default) else []


def _is_for(contract: Contract, default: Path) -> bool:
    """Whether any of its rows fits; of a file that cannot be read nobody knows, and it counts as fitting."""
    try:
        return any(isinstance(row, Row) for row in read_rows(default, contract, evaluation=True))
    except DatasetError:
        return True


def _unreadable(name: str, rows: Sequence[Row] | DatasetError) -> Gate | None:
    return Gate(name, False, str(rows), checked=False) if isinstance(rows, DatasetError) else None


def _test_split(bundle: Bundle) -> Path | None:
    try:
        return split_path(bundle, "test")
    except DatasetError:
        return None


def regression_gate(rows: Sequence[Row], answers: Sequence[Any], contract: Contract) -> Gate:
    if not rows:
        return Gate(
            "regression",
            True,
            "no regression set fits the contract; name one with --regression",
            checked=False,
        )
    result = evaluate(rows, answers, contract, "", "")
    right = result.measures[ALL]
    wrong = ", ".join(dict.fromkeys(miss.id for miss in result.misses))
    why = f"{right.count} of {right.of} rows right in every field" + (f"; not {wrong}" if wrong else "")
    return Gate("regression", right.count == right.of, why)


def doctor_gate(bundle: Bundle) -> Gate:
    try:
        failed = [f"{check.name}: {check.detail}" for check in doctor(bundle) if not check.ok]
    except BatchRouteError as error:  # it could not look, for want of the training rows say
        return Gate("doctor", False, str(error), checked=False)
    return Gate("doctor", not failed, "; ".join(failed) or "all checks pass")


def champion_gate(
    rows: Sequence[Row], ours: Sequence[Any], theirs: Sequence[Any], contract: Contract, seen: int = 0
) -> Gate:
    """`ours` and `theirs` answer the same rows; passed unless ours are worse beyond chance. So many more rows
    were `seen` in training, and left out.
    """
    dataset = rows[0].path
    champion, challenger = (evaluate(rows, answers, contract, "", str(dataset)) for answers in (theirs, ours))
    test = compare(champion, challenger).tests[ALL]
    right = (
        f"{challenger.measures[ALL].count} of {len(rows)} rows of {dataset.name} right, the champion "
        f"{champion.measures[ALL].count}"
    )
    told = {1: "it is worse", 2: "it is better", None: test.verdict}[test.better]
    left = (
        f"; {seen} {'row is' if seen == 1 else 'rows are'} left out: one of the two adapters was trained on "
        f"{'it' if seen == 1 else 'them'}, or nearly"
    ) * bool(seen)
    return Gate("champion", test.better != 1, f"{right}; {told} (exact McNemar, p = {test.p:.2g}){left}")


def _not_compared(
    champion: Candidate | None, comparable: bool, rows: Sequence[Row], seen: int, data: GateData
) -> Gate | None:
    """The gate where the two are not compared; so many of the `rows` were `seen` in training. In a file that
    the caller named there must be none.
    """
    if champion and not comparable:
        return Gate(
            "champion",
            False,
            f"champion {champion.name[:12]} has other fields or labels, so nothing can be compared; "
            "promote with --force if the task has changed, or give each task a registry "
            "($BATCH_ROUTE_ADAPTERS)",
        )
    if seen and (data.against or seen == len(rows)):
        why = (
            f"{seen} of {len(rows)} rows of {rows[0].path} are like rows that an adapter to be compared was "
            f"trained on; name others {data.others}"
        )
        return Gate("champion", False, why, checked=False)
    if champion is None:
        return Gate("champion", True, "there is no other champion to compare with", checked=False)
    if not rows:
        return Gate("champion", True, f"no dataset to compare on; name one {data.others}", checked=False)
    return None


def calibration_gate(
    champion: Candidate | None,
    target: float | None,
    how: str = "first batch-train calibrate it with --target-error {:g}",
) -> Gate:
    """`target` is the target error of the challenger's threshold; None where it has no threshold. One for
    fewer errors keeps the champion's target too.
    """
    wanted = champion.bundle.calibration.target_error if champion and champion.bundle else None
    if wanted is None:
        return Gate("calibration", True, "there is no other champion with a threshold", checked=False)
    if target is not None and target <= wanted:
        why = f"a threshold for a target error of {target:g}, the champion's for {wanted:g}"
        return Gate("calibration", True, why)
    own = "none" if target is None else f"one for {target:g}"
    return Gate(
        "calibration",
        False,
        f"the champion has a threshold for a target error of {wanted:g}, this adapter has {own}; "
        + how.format(wanted),
    )


def bias_gate(contract: Contract, asked: Sequence[Any]) -> Gate:
    rates = list(_rates(contract, asked))
    if not rates:
        return Gate(
            "bias",
            True,
            "no mention rule, or no requests to probe it with; name some with --probes",
            checked=False,
        )
    share, why = max(rates)
    return Gate("bias", share <= BOUND, f"{why}; at most {BOUND:.0%} may pass")


def _rates(contract: Contract, asked: Sequence[Any]) -> Iterator[tuple[float, str]]:
    for rule in mention_rules(contract):
        found = bias(rule, asked)
        for source in found.named:
            rate = found.rate(source)
            if rate.of:
                yield (
                    rate.share or 0.0,
                    f"{found.label!r} answered in {rate} {source} that mention no {rule.mentions[0]}",
                )
