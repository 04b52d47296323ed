"""Standard streams that nobody reads, or that were never opened: the work goes on, its exit code is its own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.adapter.bundle import Bundle
from batch.verify import verify
from tests.batch.test_run import backlog
from tests.conftest import ROOT

LOST = {
    "stderr read no more": "2> >(exec true)",
    "stderr full": "2>/dev/full",
    "stderr closed": "2>&-",
    "stdout read no more": "> >(exec true)",
    "stdout full": ">/dev/full",
    "all closed": ">&- 2>&- <&-",
}


def shell(streams: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """`batch-route` with its standard streams as bash makes them of `streams`; its reader is gone by then."""
    line = f'exec {streams}; sleep 0.2; exec "$@"'
    command = ["bash", "-c", line, "bash", sys.executable, "-m", "batch", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def finished(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("finished")
    options = ["--adapter", str(tiny_bundle.path), "--engine", "replay"]
    done = shell("2>&1", str(backlog(folder / "in.parquet")), str(folder / "out.parquet"), *options)
    assert done.returncode == 0, done.stdout
    yield folder / "out.parquet"


@pytest.mark.parametrize("options", [[], ["--log-json"]], ids=["plain", "json"])
@pytest.mark.parametrize("lost", LOST)
def test_a_run_outlives_its_terminal(
    tiny_bundle: Bundle, tmp_path: Path, lost: str, options: list[str]
) -> None:
    source, output = backlog(tmp_path / "in.parquet"), tmp_path / "out.parquet"
    words = [str(source), str(output), "--adapter", str(tiny_bundle.path), "--engine", "replay", *options]
    done = shell(LOST[lost], *words)
    assert done.returncode == 0 and verify(str(output), str(source)) == 40, done
    assert not any(word in done.stderr for word in ("Error", "Traceback", '"event": "error"'))


@pytest.mark.parametrize("lost", LOST)
def test_a_refusal_and_a_verdict_keep_their_codes(finished: Path, tmp_path: Path, lost: str) -> None:
    assert shell(LOST[lost], str(tmp_path / "no.parquet"), str(tmp_path / "out.parquet")).returncode == 2
    assert shell(LOST[lost], "verify", str(finished)).returncode == 0


@pytest.mark.parametrize("words", ["show {}", "--help", "--version"])
def test_what_is_printed(finished: Path, words: str) -> None:
    """A reader may have enough; a disk that does not hold what was asked for is told in one line."""
    asked = words.format(finished).split()
    read, full = (shell(LOST[f"stdout {how}"], *asked) for how in ("read no more", "full"))
    assert (read.returncode, read.stderr) == (0, "")
    assert full.returncode == 75
    assert full.stderr.splitlines() == ["Error: no space left; free some space, then run again to resume"]


@pytest.mark.parametrize(
    ("encoding", "name", "told"),
    [("ascii", "Übersicht.csv", r"\xdcbersicht.csv"), ("latin-1", "依.csv", r"\u4f9d.csv")],
)
def test_what_a_terminal_cannot_show_is_escaped(
    encoding: str, name: str, told: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    (tmp_path / "in").mkdir()
    backlog(tmp_path / "in/a.parquet", texts=["依"])
    (tmp_path / "in" / name).touch()
    options = ["--adapter", str(tiny_bundle.path), "--engine", "replay"]
    done = shell("2>&1", str(tmp_path / "in"), str(tmp_path / "out.parquet"), *options)
    assert done.returncode == 0 and told in done.stdout, done.stdout
    shown = shell("2>&1", "show", str(tmp_path / "out.parquet"))
    assert shown.returncode == 0 and r"\u4f9d" in shown.stdout, shown.stdout
