"""Files of an output folder on this machine take their places whole, and nothing of a killed run stays beside them."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from batch.adapter.bundle import Bundle
from batch.storage.location import Location
from batch.storage.store import LocalStore
from tests.batch.test_run import backlog, route


@pytest.mark.parametrize("disks", [1, 2])
def test_a_part_is_replaced_in_one_step(disks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same job again, with --fresh: its parts have the names of those that are published."""
    link, copy, seen = os.link, shutil.copyfile, list[bytes]()
    (tmp_path / "out").mkdir()
    (tmp_path / "new.parquet").write_bytes(b"new")
    part = tmp_path / "out/part-00000-01234567.parquet"
    part.write_bytes(b"old")

    def linking(source: Path, target: Path) -> None:
        seen.append(part.read_bytes())
        if disks == 2:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(source, target)

    def copying(source: Path, target: str) -> str:
        seen.append(part.read_bytes())
        return copy(source, target)

    monkeypatch.setattr(os, "link", linking)
    monkeypatch.setattr(shutil, "copyfile", copying)
    for _ in range(2):
        LocalStore(tmp_path).lay_out("new.parquet", Location.of(part.parent), part.name)
    assert set(seen[:disks]) == {b"old"} and part.read_bytes() == b"new"
    assert list(part.parent.iterdir()) == [part]


def test_what_a_killed_run_was_about_to_lay_there_goes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    left, held = (output / f".0123456789abcdef.{digit * 16}.partial" for digit in "ab")
    others = output / ".mine.partial"
    for path in (left, held, others):
        path.write_bytes(b"half a part")
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = route(
            tiny_bundle, backlog(tmp_path / "in.parquet"), output, "--work-dir", str(tmp_path / "w")
        )
    assert result.exit_code == 0, result.output
    assert not left.exists() and held.exists() and others.exists()
