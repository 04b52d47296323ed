"""The wheel and the sdist: whole, the same bytes each time; installed in an empty environment, `batch_route` works from
another folder, in a thread and in a notebook.
"""

import json
import os
import re
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from batch.adapter.bundle import Bundle
from batch.errors import EXTRAS, InstallationError, ours
from tests.conftest import ROOT

EPOCH = "1700000000"
USE = """
import sys, threading
import pandas, polars, pyarrow as pa, batch_route

texts = {"body": ["Find our travel policy.", None, "Find our travel policy."]}

def score(found):
    with batch_route.Scorer(sys.argv[1], engine="replay") as scorer:
        for table in (pa.table(texts), polars.DataFrame(texts), pandas.DataFrame(texts)):
            made = scorer.score(table, text_column="body")
            found.append((type(made).__module__.split(".")[0], list(map(str, made["status"]))))

in_thread, here = [], []
thread = threading.Thread(target=score, args=(in_thread,))
thread.start()
thread.join()
score(here)
polars.DataFrame({"id": [1, 2, 3], **texts}).write_parquet("in.parquet")
summary = batch_route.route("in.parquet", "out.parquet", adapter=sys.argv[1], text_column="body", engine="replay",
                            max_error_rate=1.0)
print(in_thread, in_thread == here, summary.tally.rows, batch_route.__file__, sep="\\n")
"""
NOTEBOOK = """
import sys
import nbformat
from nbclient import NotebookClient

cells = [f"import sys; sys.argv = ['', {sys.argv[1]!r}]", *sys.stdin.read().split("\\n\\n")]
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
client = NotebookClient(notebook, timeout=120, kernel_name="installed")
client.execute()
outputs = [output for cell in notebook.cells for output in cell.outputs]
print(*(output["text"] for output in outputs), sep="", end="")
"""


def build(folder: Path) -> tuple[Path, Path]:
    command = [sys.executable, str(ROOT / ".ci/build"), str(folder)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    done = subprocess.run(command, env=environment, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sdist, wheel = map(Path, done.stdout.splitlines()[-2:])
    return sdist, wheel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("one") / "dist")


def tracked(*folders: str) -> set[str]:
    return set(
        subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True).stdout.split(
            "\n"
        )[:-1]
    )


def test_they_hold_all_of_the_packages(made: tuple[Path, Path]) -> None:
    sdist, wheel = made
    packages = {name for name in tracked("batch", "batch_route", "train") if (ROOT / name).is_file()}
    assert packages - set(zipfile.ZipFile(wheel).namelist()) == set()
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert (packages | tracked("docs", "LICENSE", "README.md", "CHANGELOG.md")) - inside == set()
    assert not [name for name in inside if "mini-base/" in name]


def test_a_second_build_has_the_same_bytes(made: tuple[Path, Path], tmp_path: Path) -> None:
    assert [path.read_bytes() for path in build(tmp_path / "again")] == [path.read_bytes() for path in made]


class Installed:
    """The wheel in an environment of its own, which sees the pinned packages; run from another folder."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.bin, self.folder = folder / "environment/bin", folder / "elsewhere"
        venv.create(self.bin.parent, with_pip=False)
        self.folder.mkdir()
        (self.packages,) = self.bin.parent.glob("lib/python3*/site-packages")
        python = ["--python", str(self.bin / "python")]
        install = [sys.executable, "-m", "pip", *python, "install", "--quiet", "--no-deps", "--no-index"]
        subprocess.run(
            [*install, wheel], check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        )
        (self.packages / "pinned.pth").write_text(site.getsitepackages()[0])
        kernel = folder / "jupyter/kernels/installed/kernel.json"
        kernel.parent.mkdir(parents=True)
        argv = [str(self.bin / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel.write_text(json.dumps({"argv": argv, "display_name": "installed", "language": "python"}))
        self._environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._environment |= {"JUPYTER_PATH": str(folder / "jupyter"), "IPYTHONDIR": str(folder / "ipython")}

    def run(self, program: str, *words: object, given: str = "") -> str:
        done = subprocess.run(
            [self.bin / program, *map(str, words)],
            cwd=self.folder, env=self._environment, input=given, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(made[1], tmp_path_factory.mktemp("installed"))


def test_the_programs_of_the_installed_wheel(installed: Installed) -> None:
    for program in ("batch-route", "batch-train"):
        assert re.fullmatch(rf"{program}, version \d+\.\d+\.\d+\n", installed.run(program, "--version"))
    assert "Usage: batch-train" in installed.run("batch-train", "fit", "--help")


@pytest.mark.parametrize("where", ["script", "notebook"])
def test_the_python_call_of_the_installed_wheel(
    where: str, installed: Installed, tiny_bundle: Bundle
) -> None:
    """Arrow, Polars and pandas, in the main thread and in another; in a notebook's kernel a loop runs already."""
    words = ("-c", USE if where == "script" else NOTEBOOK, tiny_bundle.path)
    in_thread, same, rows, module = installed.run("python", *words, given=USE).splitlines()
    statuses = ["ok", "error", "ok"]
    assert in_thread == repr([(kind, statuses) for kind in ("pyarrow", "polars", "pandas")])
    assert (same, rows) == ("True", "3") and module.startswith(str(installed.packages))


@pytest.mark.parametrize(
    ("module", "extras"), [("vllm", "[engine]"), ("trl", "[train]"), ("uvicorn.config", "[review]")]
)
def test_a_missing_extra_is_exit_2_with_the_command(module: str, extras: str) -> None:
    error = ours(ModuleNotFoundError(name=module))
    assert isinstance(error, InstallationError) and error.exit_code == 2
    assert f"pip install 'batch-route{extras}'" in str(error)


def test_the_extras_that_messages_name_install_the_module() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {"sklearn": "scikit-learn", "mlflow": "mlflow-skinny"}
    for module, extra in EXTRAS.items():
        package = packages.get(module, module)
        assert any(re.split(r"[<>=\[]", need)[0] == package for need in extras[extra]), module


def test_what_is_locked_has_every_extra() -> None:
    """Each package that an extra names is pinned, on one of the stacks at least."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    locked = "\n".join(path.read_text() for path in (ROOT / ".ci").glob("*.lock"))
    wanted = {re.split(r"[<>=\[]", need)[0] for needs in extras.values() for need in needs}
    assert [name for name in wanted if not re.search(rf"^{re.escape(name)}==", locked, re.M | re.I)] == []
