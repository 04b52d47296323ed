"""docs/: the unit files and the CronJob are what systemd and Kubernetes take, and the page says what the code does."""

import configparser
import copy
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from batch import errors
from batch.adapter.bundle import Bundle
from batch.cli import main
from batch.scoring.lane import ERROR_MESSAGES, TEXT_ERRORS
from tests import seccomp
from tests.batch.reporting.test_outlets import SECRET, events
from tests.batch.test_run import HOSTILE, backlog, route
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "operations.md").read_text()
SIGNALS = {128 + number for number in errors.ENDING}
FINAL = {2, 3, 4}  # 4 is retried where a lost machine's lock can outlive it
# The directives that our units use, by section (systemd.unit, .service, .exec, .kill and .timer(5)).
KNOWN = {
    "Unit": {"Description", "Documentation", "StartLimitIntervalSec", "StartLimitBurst"},
    "Service": {
        "Type", "User", "WorkingDirectory", "ExecStart", "Restart", "RestartSec", "SuccessExitStatus", "RestartPreventExitStatus",
        "KillMode", "TimeoutStopSec", "TimeoutStartSec", "CacheDirectory", "CacheDirectoryMode", "Environment", "NoNewPrivileges", "PrivateTmp", "ProtectHome",
        "ProtectSystem", "ReadWritePaths", "UMask", "CapabilityBoundingSet", "LockPersonality", "ProtectClock", "ProtectControlGroups",
        "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "RemoveIPC",
        "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures",
        "SystemCallFilter",
    },
    "Timer": {"OnCalendar", "RandomizedDelaySec", "Persistent"},
    "Install": {"WantedBy"},
}  # fmt: skip


def unit(name: str) -> configparser.ConfigParser:
    """A unit file, read strictly: a section or key there twice is an error."""
    parser = configparser.ConfigParser(
        interpolation=None, strict=True, delimiters=("=",), comment_prefixes=("#",)
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # directives are case-sensitive
    text = (DOCS / name).read_text()
    parser.read_string(re.sub(r"\\\n\s*", " ", text))
    return parser


def codes(text: str) -> set[int]:
    return {int(code) for code in re.findall(r"\d+", text)}


@pytest.mark.parametrize("name", ["batch-route.service", "batch-route.timer"])
def test_units_hold_known_directives(name: str) -> None:
    parser = unit(name)
    assert {section: set(parser[section]) - KNOWN[section] for section in parser.sections()} == {
        section: set() for section in parser.sections()
    }


@pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd is not installed; the strict reading above stands in"
)
def test_units_pass_systemd_analyze(tmp_path: Path) -> None:
    for path in DOCS.glob("batch-route.*"):
        # A program and a user that exist on this machine: systemd-analyze looks for them.
        text = (
            path.read_text()
            .replace("/opt/batch-route/.venv/bin/batch-route", sys.executable)
            .replace("User=batch-route", "User=root")
        )
        (tmp_path / path.name).write_text(
            text.replace("WorkingDirectory=/opt/batch-route", "WorkingDirectory=/")
        )
    files = [str(path) for path in tmp_path.iterdir()]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True)
    assert done.returncode == 0 and str(tmp_path) not in done.stderr, done.stderr
    broken = tmp_path / "batch-route.service"
    broken.write_text(broken.read_text().replace("RestartSec=60", "RestartSeconds=60"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(broken)], capture_output=True, text=True
    )
    assert "RestartSeconds" in done.stderr, "the check can fail"


def parsed(words: list[str]) -> dict[str, Any]:
    """A command line, parsed by the program's own options."""
    assert Path(words[0]).name == "batch-route"
    with main.make_context("batch-route", words[1:]) as context:
        return context.params


def test_service_retries_by_exit_code() -> None:
    service = unit("batch-route.service")["Service"]
    # Every failure but these is restarted, unless SuccessExitStatus= were to make one of them a success.
    assert service["Restart"] == "on-failure" and codes(service["RestartPreventExitStatus"]) == FINAL
    assert "SuccessExitStatus" not in service and service["KillMode"] == "mixed"
    options = parsed(shlex.split(service["ExecStart"]))
    assert options["log_json"] and options["report"] and options["metrics"].suffix == ".prom"
    writable = service["ReadWritePaths"].split()
    assert all(
        any(str(options[name]).startswith(place) for place in writable)
        for name in ("output", "report", "metrics")
    )


GLOO = """
import torch.distributed
torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
"""


@pytest.mark.skipif(platform.machine() not in seccomp.SOCKET, reason="the call's number is not known")
def test_the_unit_lets_an_engine_open_its_sockets() -> None:
    """vLLM starts PyTorch's gloo for one device too, and that asks the kernel for its network interfaces."""
    allowed = unit("batch-route.service")["Service"]["RestrictAddressFamilies"]
    for families, works in ((allowed, True), ("AF_UNIX AF_INET AF_INET6", False)):
        words = [sys.executable, "-m", "tests.seccomp", families, GLOO]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (done.returncode == 0) is works, done.stderr


@pytest.fixture(scope="module")
def cronjob() -> dict[str, Any]:
    class Strict(yaml.SafeLoader):
        """Refuses a key that is duplicated, as Kubernetes' strict validation does."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"a key twice in {keys}"
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    (document,) = yaml.load_all((DOCS / "cronjob.yaml").read_text(), Strict)
    return document  # type: ignore[no-any-return]


def test_kubernetes_own_schema_takes_the_manifests(cronjob: dict[str, Any]) -> None:
    """The API's published OpenAPI schema, read strictly."""
    assert kubernetes_validate.validate(cronjob, "1.31", strict=True) == "1.31"
    cronjob = copy.deepcopy(cronjob)
    cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(cronjob, "1.31", strict=True)


def test_the_claims_are_those_that_the_manifests_name(cronjob: dict[str, Any]) -> None:
    """And the pod that fills them mounts each where the runs do."""
    objects = list(yaml.safe_load_all((DOCS / "volumes.yaml").read_text()))
    for each in objects:
        assert kubernetes_validate.validate(each, "1.31", strict=True) == "1.31"
    *claims, policy, copying = objects
    jobs = [
        cronjob["spec"]["jobTemplate"],
        *yaml.safe_load_all((DOCS / "indexed-job.yaml").read_text()),
    ]
    pods = [job["spec"]["template"]["spec"] for job in jobs]
    assert {claim["metadata"]["name"] for claim in claims} == set().union(
        *map(claimed, [*pods, copying["spec"]])
    )
    for job in jobs:
        assert job["spec"]["template"]["metadata"]["labels"] == policy["spec"]["podSelector"]["matchLabels"]
    assert "labels" not in copying["metadata"], "it may download"
    assert claimed(copying["spec"]) == claimed(pods[0])
    assert copying["spec"]["securityContext"] == pods[0]["securityContext"]


def claimed(pod: dict[str, Any]) -> dict[str, str]:
    """Where a pod mounts each claim."""
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    return {
        volume["persistentVolumeClaim"]["claimName"]: mounts[volume["name"]]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }


def test_the_pod_needs_no_privilege_and_finds_what_it_needs(cronjob: dict[str, Any]) -> None:
    pod = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    image = (DOCS / "Dockerfile").read_text()
    assert pod["securityContext"]["runAsNonRoot"] and f"USER {pod['securityContext']['runAsUser']}" in image
    own = container["securityContext"]
    assert (
        own["readOnlyRootFilesystem"]
        and not own["allowPrivilegeEscalation"]
        and own["capabilities"] == {"drop": ["ALL"]}
    )
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    written = [
        value
        for value in re.findall(r"=(/\S+)", image.split("ENV ")[1].split("USER")[0])
        if value.startswith("/cache")
    ]
    assert {"HOME", "XDG_CACHE_HOME"} <= set(re.findall(r"(\w+)=/cache", image))
    assert written and mounts["/cache"] is mounts["/data"] is mounts["/tmp"] is False
    assert mounts["/models"] and mounts["/adapters"]


def test_dockerfile_lints_clean() -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, DOCS / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for line in re.findall(r"^COPY (?!--)(.+) \S+$", (DOCS / "Dockerfile").read_text(), re.M):
        for name in line.replace("${STACK}", "cuda").split():
            assert (ROOT / name).exists(), name


def test_the_image_has_every_package() -> None:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    for package in {name.partition(".")[0] for name in found["include"]}:
        assert f"\nCOPY {package} {package}\n" in (DOCS / "Dockerfile").read_text()
        assert f"\n!{package}\n" in (DOCS / "Dockerfile.dockerignore").read_text()


def test_cronjob_has_the_shape_that_kubernetes_takes(cronjob: dict[str, Any]) -> None:
    """The keys of batch/v1 CronJob, JobSpec and PodSpec that we use, at their places, and the API's own rules."""
    assert (cronjob["apiVersion"], cronjob["kind"], set(cronjob)) == (
        "batch/v1",
        "CronJob",
        {"apiVersion", "kind", "metadata", "spec"},
    )
    spec = cronjob["spec"]
    assert set(spec) <= {
        "schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit",
        "jobTemplate", "suspend",
    }  # fmt: skip
    assert (
        re.fullmatch(r"[\d*/,-]+( [\d*/,-]+){4}", spec["schedule"]) and spec["concurrencyPolicy"] == "Forbid"
    )
    job = spec["jobTemplate"]["spec"]
    assert set(job) == {
        "backoffLimit",
        "activeDeadlineSeconds",
        "podReplacementPolicy",
        "podFailurePolicy",
        "template",
    }
    pod = job["template"]["spec"]
    # podFailurePolicy is refused with restartPolicy OnFailure, and allows no other podReplacementPolicy.
    assert pod["restartPolicy"] == "Never" and job["podReplacementPolicy"] == "Failed"
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    options = parsed(container["command"])
    mounts = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert all(
        any(str(options[name]).startswith(place) for place in mounts)
        for name in ("output", "report", "metrics")
    )


def test_cronjob_retries_by_exit_code(cronjob: dict[str, Any]) -> None:
    job = cronjob["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    actions: dict[int, str] = {}
    for rule in job["podFailurePolicy"]["rules"]:
        assert rule["action"] in ("FailJob", "Ignore", "Count", "FailIndex") and len(rule) == 2
        if on := rule.get("onExitCodes"):
            assert (
                on["containerName"] == container["name"] and on["operator"] == "In" and 0 not in on["values"]
            )
            assert on["values"] == sorted(set(on["values"]))
            for code in on["values"]:
                actions.setdefault(code, rule["action"])  # the first rule that matches decides
    assert {code for code, action in actions.items() if action == "FailJob"} == FINAL - {4}
    assert {code for code, action in actions.items() if action == "Count"} == {4, 75, 130, 137, 143}


def test_page_tells_every_exit_code() -> None:
    table = PAGE.split("| exit code |")[1].split("\n\n")[0].splitlines()[2:]
    told = {code: row.split("|")[2].strip() for row in table for code in codes(row.split("|")[1])}
    raised = {
        value.exit_code
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.BatchRouteError)
    }
    assert set(told) == {0, errors.EXIT_TOO_MANY_ERRORS, 137} | SIGNALS | raised
    assert {code for code, retry in told.items() if retry == "yes"} == {75, 137} | SIGNALS
    assert set(ERROR_MESSAGES) - TEXT_ERRORS == set(re.findall(r"`([a-z]+_?[a-z]+)`", table[2]))


def test_page_tells_every_metric_and_event(tiny_bundle: Bundle, tmp_path: Path) -> None:
    output, path = tmp_path / "out.parquet", tmp_path / "m.prom"
    route(tiny_bundle, backlog(tmp_path / "one.parquet", texts=["Put it on ServiceNow"] * 9), output)
    options = ["--metrics", str(path), "--log-json", "--max-error-rate", "1"]
    good = route(
        tiny_bundle,
        backlog(tmp_path / "two.parquet", texts=[*HOSTILE, SECRET, *map(str, range(40))]),
        output,
        *options,
    )
    bad = route(tiny_bundle, tmp_path / "two.parquet", output, *options, "--id-column", "none")
    written = set(re.findall(r"^# TYPE (\w+)", path.read_text(), re.M))
    assert good.exit_code == 0 and bad.exit_code == 2
    route(tiny_bundle, tmp_path / "two.parquet", output, *options, "--fresh", "--limit", "40")
    written |= set(re.findall(r"^# TYPE (\w+)", path.read_text(), re.M))
    table = PAGE.split("| metric | |")[1].split("\n\n")[0]
    assert set(re.findall(r"batch_route_\w+", table)) == written
    assert set(re.findall(r"batch_route_\w+", PAGE)) == written
    told = re.findall(r"^\| `([a-z ]+)` \|", PAGE.split("| event | facts |")[1].split("\n\n")[0], re.M)
    seen = {str(line["event"]) for line in events(good.stderr + bad.stderr)}
    code = "\n".join(path.read_text() for path in (ROOT / "batch").rglob("*.py"))
    emitted = set(re.findall(r'emit\(\s*"([a-z ]+)"', code))
    assert set(told) == emitted and seen <= emitted
    alerts = yaml.safe_load((DOCS / "alerts.yaml").read_text())
    expressions = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    named = [set(re.findall(r"batch_route_\w+", each)) for each in expressions]
    assert all(named) and set().union(*named) <= written
