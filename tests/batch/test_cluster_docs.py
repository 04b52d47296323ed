"""docs/: the manifests for shards are what Kubernetes, bash and Python take, and each command is one that we have."""

import ast
import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from batch.cli import main
from batch.cli_shards import commit
from tests.conftest import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def jobs() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCS / "indexed-job.yaml").read_text()))


def spec(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def test_kubernetes_takes_the_jobs(jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        assert kubernetes_validate.validate(job, "1.33", strict=True) == "1.33"
        broken = copy.deepcopy(job)
        broken["spec"]["backoffLimitPerIndexx"] = 1
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, "1.33", strict=True)
        pod, container = spec(job)
        assert pod["restartPolicy"] == "Never" and pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            each["name"] for each in pod["volumes"]
        }


def test_each_index_is_a_shard(jobs: list[dict[str, Any]]) -> None:
    shards, last = jobs
    told, (_, container) = shards["spec"], spec(shards)
    assert told["completionMode"] == "Indexed" and told["backoffLimitPerIndex"] and told["maxFailedIndexes"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    seen = set()
    for index in range(told["completions"]):
        words = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in container["command"]]
        with main.make_context(words[0], words[1:]) as context:
            seen.add(context.params["shard"])
    assert seen == {(index, told["completions"]) for index in range(told["completions"])}
    words = spec(last)[1]["command"]
    assert words[:2] == ["batch-route", "commit"] and last["spec"]["suspend"]
    with commit.make_context("commit", words[2:]) as context:
        assert context.params["output"] == container["command"][2]


def test_jobs_retry_by_exit_code(jobs: list[dict[str, Any]]) -> None:
    for job, final in zip(jobs, ({2}, {2, 3}), strict=True):
        actions = {
            code: rule["action"]
            for rule in job["spec"]["podFailurePolicy"]["rules"]
            for code in rule.get("onExitCodes", {}).get("values", ())
        }
        assert {code for code, action in actions.items() if action == "FailJob"} == final
        assert {4, 75, 130, 137, 143} == {code for code, action in actions.items() if action == "Count"}


def test_slurm_script(tmp_path: Path) -> None:
    """Its syntax, its directives, and what it does with an exit code, with stand-ins for Slurm's programs."""
    script = DOCS / "slurm-array.sh"
    text = script.read_text()
    known = "job-name array ntasks cpus-per-task gpus-per-task mem time requeue open-mode signal"
    assert set(re.findall(r"^#SBATCH --([a-z-]+)", text, re.M)) == set(known.split())
    for code, requeued in ((0, False), (2, False), (4, True), (75, True), (137, True), (143, True)):
        for name, does in {
            "srun": f'echo "$@" > srun.txt; exit {code}',
            "scontrol": "echo $@ > requeued.txt",
        }.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
            (tmp_path / name).chmod(0o755)
        (tmp_path / "requeued.txt").unlink(missing_ok=True)
        environment = {
            "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "7",
            "SLURM_ARRAY_JOB_ID": "41", "SLURM_CPUS_PER_TASK": "2",
        }  # fmt: skip
        done = subprocess.run(["bash", script], cwd=tmp_path, env=environment)
        assert done.returncode == code and (tmp_path / "requeued.txt").exists() is requeued
    assert (tmp_path / "requeued.txt").read_text() == "requeue 41_3\n"
    words = shlex.split((tmp_path / "srun.txt").read_text())
    assert words.pop(0) == "--cpus-per-task=2"
    with main.make_context(words[0], words[1:]) as context:
        assert context.params["shard"] == (3, 8)


def test_airflow_dag() -> None:
    """Airflow is not installed: its syntax, and the shards that it starts."""
    path = DOCS / "airflow_dag.py"
    subprocess.run([sys.executable, "-c", f"compile(open({str(path)!r}).read(), 'dag', 'exec')"], check=True)
    (lists,) = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ListComp)]
    known = {"INPUT": "in", "OUTPUT": "out", "SHARDS": 8, "range": range}
    arguments = eval(compile(ast.Expression(lists), "dag", "eval"), known)
    for index, words in enumerate(arguments):
        with main.make_context("batch-route", list(words)) as context:
            assert context.params["shard"] == (index, 8)
