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


def test_only_an_io_error_is_a_cause() -> None:
    try:
        raise AdapterError("damaged; copy it") from ValueError(5)
    except AdapterError as error:
        assert ours(error) is error
    full = StorageError("x: no space left; free some space, then run again to resume")
    assert ours(full) is full


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
