"""However a run is asked to end: its exit code, one line, nothing left behind. The long form is `signal_storm`."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from batch.adapter.bundle import Bundle
from batch.cli import main
from batch.errors import EngineError, InputError, Interrupted, deadline, ours, signals_raise
from tests.faults.kill_storm import write_input
from tests.faults.signal_storm import storm


def test_at_moments_over_a_runs_whole_life(tiny_bundle: Bundle, tmp_path: Path) -> None:
    ended = storm(tmp_path, str(tiny_bundle.path), signals=7, seed=3)
    assert ended["interrupted"] >= 4 and ended.total() == 7 and not ended["wrong"]


@pytest.fixture
def slow_run(tiny_bundle: Bundle, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A run that routes, in a session of its own, with its temporary files in `tmp_path/tmp`."""
    write_input(tmp_path / "in.parquet", 3000)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "slow.json").write_text('{"delay": 0.3}')
    command = [sys.executable, "-m", "batch", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]
    options = ["--adapter", str(tiny_bundle.path), "--engine", "replay", "--max-num-seqs", "16"]
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path / "tmp"),
        "BATCH_ROUTE_REPLAY_FAULTS": str(tmp_path / "slow.json"),
    }
    with subprocess.Popen(
        [*command, *options, "--log-json"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if '"engine ready"' in line:
                break
        yield run
        run.kill()


def running(session: int) -> list[int]:
    """The processes of a session that are not yet dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGTERM])
def test_a_signal_to_the_whole_group(slow_run: "subprocess.Popen[str]", tmp_path: Path, number: int) -> None:
    """A closed terminal, Ctrl-\\ and a service's stop: the parent decides."""
    time.sleep(0.3)
    os.killpg(slow_run.pid, number)
    _, errors = slow_run.communicate(timeout=30)
    assert slow_run.returncode == 128 + number
    assert f'"exit_code": {128 + number}' in errors and "Traceback" not in errors
    assert not os.listdir(tmp_path / "tmp")
    deadline = time.monotonic() + 5
    while running(slow_run.pid):
        assert time.monotonic() < deadline, "the engine outlived its run"
        time.sleep(0.05)


def test_ctrl_c_in_a_terminal(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """It reaches the run and not the engine, whose parts would end before the run has decided."""
    write_input(tmp_path / "in.parquet", 3000)
    (tmp_path / "slow.json").write_text('{"delay": 0.3}')
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "batch", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]
    line += ["--adapter", str(tiny_bundle.path), "--engine", "replay", "--max-num-seqs", "16", "--log-json"]
    with subprocess.Popen(
        # who opens a terminal first in a new session has it
        ["sh", "-c", 'exec "$@" < "$0"', os.ttyname(theirs), *line],
        env={**os.environ, "BATCH_ROUTE_REPLAY_FAULTS": str(tmp_path / "slow.json")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stderr is not None
        ready = next(line for line in run.stderr if '"engine ready"' in line)
        assert ready and len(running(run.pid)) > 1
        os.write(ours, b"\x03")
        errors = run.communicate(timeout=30)[1]
    os.close(ours)
    os.close(theirs)
    assert run.returncode == 130 and '"exit_code": 130' in errors and "Traceback" not in errors
    assert not running(run.pid)


def test_a_killed_run_leaves_no_log(slow_run: "subprocess.Popen[str]", tmp_path: Path) -> None:
    slow_run.kill()
    slow_run.wait()
    assert not os.listdir(tmp_path / "tmp")


def test_what_a_library_makes_of_a_signal_is_still_the_signal() -> None:
    with pytest.raises(RuntimeError) as masked, signals_raise():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(1)
        except Interrupted as error:
            ended = ours(EngineError("the engine failed"))
            raise RuntimeError from error
    assert isinstance(ended, Interrupted) and ended.exit_code == 129
    assert not isinstance(ours(masked.value), Interrupted)  # and the next run begins afresh


def test_nohup_is_respected() -> None:
    program = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "import batch.__main__\n"
        "os.kill(os.getpid(), signal.SIGHUP); print('goes on')\n"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "goes on\n", "")


def test_a_deadline_ends_a_run_in_time(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 75 and one line; what was done is kept, and a rerun ends the job."""
    write_input(tmp_path / "in.parquet", 3000)
    (tmp_path / "slow.json").write_text('{"delay": 0.3}')
    monkeypatch.setenv("BATCH_ROUTE_REPLAY_FAULTS", str(tmp_path / "slow.json"))
    places = [str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]
    line = [*places, "--adapter", str(tiny_bundle.path), "--engine", "replay", "--max-error-rate", "1"]
    started = time.monotonic()
    ended = CliRunner().invoke(main, [*line, "--max-num-seqs", "16", "--deadline", "12s"])
    assert ended.exit_code == 75 and time.monotonic() - started < 12
    assert ended.stderr.splitlines()[-1] == "The deadline has come; run again to resume"
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    monkeypatch.delenv("BATCH_ROUTE_REPLAY_FAULTS")
    done = CliRunner().invoke(main, [*line, "--deadline", "1h30m"])
    assert done.exit_code == 0 and "resumed" in done.output, done.output


@pytest.mark.parametrize("text", ["0", "", "-5s", "90 minutes", "1d", "1.5h", "5s3m", "9999h9999h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    refused = CliRunner().invoke(main, ["in.parquet", "out.parquet", "--deadline", text])
    assert refused.exit_code == 2 and "not a valid duration" in refused.output


def test_a_deadline_in_another_thread_is_refused() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="main thread"):
        pool.submit(lambda: contextlib.ExitStack().enter_context(deadline(5))).result()
