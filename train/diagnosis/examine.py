"""Adapters judged on datasets and diagnosed on the first of them, by one engine."""

from collections.abc import Sequence
from pathlib import Path

from batch.engine import DEFAULT_ENGINE
from batch.scoring.lane import ScoredRow
from train.dataset import Row, load_rows
from train.diagnosis.contrast import probes
from train.diagnosis.diagnose import AskedRow, Diagnosis, asked_probes, asked_rows, diagnose
from train.diagnosis.occlusion import driven, erasures
from train.evaluation.ask import Candidate, judged, route
from train.evaluation.evaluate import Evaluation, evaluate
from train.evaluation.from_scored import FileRow


def examine(
    subjects: Sequence[Candidate],
    datasets: Sequence[Path],
    trains: Sequence[Sequence[Row]],
    engine: str = DEFAULT_ENGINE,
) -> tuple[list[Evaluation], list[Diagnosis]]:
    """Judge each subject on each dataset and diagnose it on the first, with contrast probes; one engine does
    it all. Diagnosed are the model's own answers, which training can change, before any rule corrects them.
    """
    gold = [[load_rows(path, subject.contract, evaluation=True) for path in datasets] for subject in subjects]
    contrast = [probes(subject.contract, rows[0]) for subject, rows in zip(subjects, gold, strict=True)]
    texts = [
        [*([r.request for r in rows] for rows in each), [p.request for p in own]]
        for each, own in zip(gold, contrast, strict=True)
    ]

    def asked(i: int, answers: Sequence[Sequence[ScoredRow]]) -> list[AskedRow]:
        own = asked_rows(datasets[0].name, gold[i][0], answers[0])
        return own + asked_probes(contrast[i], answers[len(datasets)])

    def erase(i: int, answers: list[list[ScoredRow]]) -> list[str]:
        return [each.request for each in erasures(asked(i, answers), subjects[i].contract)]

    evaluations, diagnoses = [], []
    for i, (subject, answers) in enumerate(zip(subjects, route(subjects, texts, engine, erase), strict=True)):
        results = [
            judged(subject, rows, scored, str(path))
            for path, rows, scored in zip(datasets, gold[i], answers, strict=False)
        ]
        own = asked(i, answers)
        erased = driven(erasures(own, subject.contract), answers[-1], subject.contract)
        said = [FileRow(scored.answer, scored.error_code) for scored in answers[0]]
        mistakes = evaluate(gold[i][0], said, subject.contract, subject.name, str(datasets[0]))
        diagnoses.append(diagnose(mistakes, own, trains[i], subject.contract, erased))
        evaluations += results
    return evaluations, diagnoses
