"""The wheel and the sdist: whole, the same bytes each time; installed in an empty environment, `batch_route` works from
another folder, in a thread and where an event loop runs, as it does in a notebook.
"""

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
import asyncio, sys, threading
import pandas, polars, pyarrow as pa, batch_route

texts = {"body": ["Find our travel policy.", None, "Find our travel policy."]}

def score(found):
    with batch_route.Scorer(sys.argv[1], engine="replay") as scorer:
        for table in (pa.table(texts), polars.DataFrame(texts), pandas.DataFrame(texts)):
            made = scorer.score(table, text_column="body")
            found.append((type(made).__module__.split(".")[0], list(map(str, made["status"]))))

in_thread, in_loop = [], []
thread = threading.Thread(target=score, args=(in_thread,))
thread.start()
thread.join()

async def cell():
    score(in_loop)

asyncio.run(cell())
polars.DataFrame({"id": [1, 2, 3], **texts}).write_parquet("in.parquet")
summary = batch_route.route("in.parquet", "out.parquet", adapter=sys.argv[1], text_column="body", engine="replay",
                            max_error_rate=1.0)
print(in_thread, in_thread == in_loop, summary.tally.rows, batch_route.__file__, sep="\\n")
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


def test_the_installed_wheel_from_another_folder(
    made: tuple[Path, Path], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    python, (pinned, *_) = home / "bin/python", site.getsitepackages()
    (packages,) = home.glob("lib/python3*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    install += ["--no-index", str(made[1])]
    subprocess.run(install, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (packages / "pinned.pth").write_text(pinned)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(*words: object) -> str:
        done = subprocess.run(
            list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    kinds, same, rows, where = run(python, "-c", USE, tiny_bundle.path).splitlines()
    statuses = ["ok", "error", "ok"]
    assert kinds == repr([(kind, statuses) for kind in ("pyarrow", "polars", "pandas")])
    assert (same, rows) == ("True", "3") and where.startswith(str(packages))
    for program in ("batch-route", "batch-train"):
        assert re.fullmatch(rf"{program}, version \d+\.\d+\.\d+\n", run(home / "bin" / program, "--version"))
    assert "Usage: batch-train" in run(home / "bin/batch-train", "fit", "--help")


@pytest.mark.parametrize(
    ("module", "extras"), [("vllm", "[engine]"), ("trl", "[train]"), ("uvicorn.config", "[review]")]
)
def test_a_missing_extra_is_exit_2_with_the_command(module: str, extras: str) -> None:
    error = ours(ModuleNotFoundError(name=module))
    assert isinstance(error, InstallationError) and error.exit_code == 2
    assert f"pip install 'batch-route{extras}'" in str(error)


def test_the_extras_that_messages_name_install_the_module() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {"sklearn": "scikit-learn"}
    for module, extra in EXTRAS.items():
        package = packages.get(module, module)
        assert any(re.split(r"[<>=\[]", need)[0] == package for need in extras[extra]), module


def test_what_is_locked_has_every_extra() -> None:
    """Each package that an extra names is pinned, on one of the stacks at least."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    locked = "\n".join(path.read_text() for path in (ROOT / ".ci").glob("*.lock"))
    wanted = {re.split(r"[<>=\[]", need)[0] for needs in extras.values() for need in needs}
    assert [name for name in wanted if not re.search(rf"^{re.escape(name)}==", locked, re.M | re.I)] == []
