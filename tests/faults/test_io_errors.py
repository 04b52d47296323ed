"""I/O errors: a rerun may mend them, so they are 75, whoever met them first. The long form is `io_storm`."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batch.adapter.bundle import Bundle
from batch.errors import AdapterError, BacklogError, InputError, StorageError, ours
from tests.faults.io_storm import Storm
from tests.faults.kill_storm import write_input


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler, for the library that lets calls fail")
def test_at_positions_over_a_run(tiny_bundle: Bundle, tmp_path: Path) -> None:
    storm = Storm(tmp_path, tiny_bundle.path)
    step = storm.positions // 4
    for at, number in zip(
        range(step // 2, storm.positions, step), (errno.EIO, errno.ENOSPC) * 2, strict=False
    ):
        storm.fail(at, number)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EIO, 75),
        (errno.EMFILE, 75),
        (errno.ENOSPC, 75),
        (errno.ESTALE, 75),
        (errno.EACCES, 2),
        (errno.ENOENT, 2),
    ],
)
def test_the_cause_decides(number: int, code: int) -> None:
    """However often it was wrapped on its way, and whatever remedy the first to meet it thought of."""
    try:
        try:
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise InputError("x.parquet: cannot be read; copy it again") from error
        except InputError as error:
            raise BacklogError(str(error)) from error
    except BacklogError as error:
        end = ours(error)
    assert end.exit_code == code
    assert str(end) == f"x.parquet: cannot be read; {'copy it again' if code == 2 else 'run again to resume'}"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, 2),
        (errno.EROFS, 2),
        (errno.EOPNOTSUPP, 2),
        (errno.EIO, 75),
        (errno.ENOENT, 75),
        (errno.EAGAIN, 75),
    ],
)
def test_one_that_nobody_met_on_its_way(number: int, code: int) -> None:
    end = ours(OSError(number, os.strerror(number), "tokenizer.json"))
    assert end.exit_code == code and ("run again to resume" in str(end)) == (code == 75)


def test_only_an_io_error_is_a_cause() -> None:
    try:
        raise AdapterError("damaged; copy it") from ValueError(5)
    except AdapterError as error:
        assert ours(error) is error
    full = StorageError("x: no space left; free some space, then run again to resume")
    assert ours(full) is full


# root may read everything, unless it gives that up
NO_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"] if os.geteuid() == 0 else []


@pytest.mark.skipif(bool(NO_ROOT) and not shutil.which("setpriv"), reason="root reads everything")
@pytest.mark.parametrize("place", ["", "aliases", "aliases/champion", "bundle/tokenizer.json"])
def test_what_this_user_may_not_read(tiny_bundle: Bundle, tmp_path: Path, place: str) -> None:
    """A person has to change it: 2, and it is neither missing nor damaged."""
    registry = tmp_path / "adapters"
    shutil.copytree(tiny_bundle.path, registry / tiny_bundle.digest)
    (registry / "aliases").mkdir()
    (registry / "aliases/champion").write_text(tiny_bundle.digest)
    closed = registry / place.replace("bundle", tiny_bundle.digest)
    write_input(tmp_path / "in.parquet", 10)
    command = [sys.executable, "-m", "batch", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]
    closed.chmod(0)
    try:
        done = subprocess.run(
            [*NO_ROOT, *command, "--engine", "replay"],
            env={**os.environ, "BATCH_ROUTE_ADAPTERS": str(registry)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        closed.chmod(0o700)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("Error: Permission denied at "), done


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace, which lets calls fail")
def test_where_no_thread_can_be_started(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """`TasksMax=`, `pids.max`: the machine is full, nobody interrupted."""
    write_input(tmp_path / "in.parquet", 10)
    full = ["-e", "trace=clone,clone3", "-e", "inject=clone,clone3:error=EAGAIN"]
    command = [sys.executable, "-m", "batch", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", os.devnull, *full, *command, "--adapter", str(tiny_bundle.path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 75 and "out of memory or threads" in done.stderr.splitlines()[-1], done


LIMITS = {"memory": "ulimit -v 60000", "descriptors": "ulimit -n 12", "file size": "ulimit -f 1"}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_of_the_machine_end_in_a_line(tiny_bundle: Bundle, tmp_path: Path, limit: str) -> None:
    """Never a traceback; where the limit is lifted, the run goes on."""
    write_input(tmp_path / "in.parquet", 600)
    command = [
        *(sys.executable, "-m", "batch", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")),
        *("--adapter", str(tiny_bundle.path), "--engine", "replay", "--max-error-rate", "1"),
    ]
    limited = subprocess.run(
        ["bash", "-c", f'{LIMITS[limit]}; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in limited.stderr and limited.returncode == 75, limited.stderr
    assert limited.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == 0
