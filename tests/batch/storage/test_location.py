"""Files come to lie at their place whole or not at all."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from batch.errors import InputError, StorageError, shown
from batch.storage.location import Location, is_local, replacing, storage_error, write_file
from batch.storage.places import check_writable
from batch.storage.remote import asked
from tests.conftest import ROOT


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_file(target, b"old")
    write_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.json"
    target.write_bytes(b"old")
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), replacing(Location.of(target)) as temporary:
        Path(temporary.path).write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_killed_before_the_rename_there_is_no_output(tmp_path: Path) -> None:
    """Checked against a variant that writes to the place itself: it leaves `half`."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from batch.storage.location import Location, replacing\n"
        "with replacing(Location.of(sys.argv[1])) as temporary:\n"
        "    Path(temporary.path).write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "out.parquet"
    killed = subprocess.run([sys.executable, "-c", program, str(target)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    write_file(target, b"whole")  # what the killed run left is overwritten
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_a_replaced_file_keeps_mode_and_owner(tmp_path: Path) -> None:
    """Also a mode that would keep its writer out: it is set last, until then the file is its writer's alone."""
    target = tmp_path / "out.parquet"
    target.write_bytes(b"old")
    for mode in (0o444, 0o600, 0o664):
        target.chmod(mode)
        if os.geteuid() == 0:
            os.chown(target, 4242, 4243)
        with replacing(Location.of(target)) as file:
            assert stat.S_IMODE(os.stat(file.path).st_mode) == 0o600
            Path(file.path).write_bytes(b"new")
        found = target.stat()
        assert stat.S_IMODE(found.st_mode) == mode and target.read_bytes() == b"new"
        if os.geteuid() == 0:
            assert (found.st_uid, found.st_gid) == (4242, 4243)
    like = target.stat()
    target.unlink()
    write_file(target, b"again", like=like)
    assert stat.S_IMODE(target.stat().st_mode) == 0o664


def test_each_step_is_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced under its temporary name, and the directory after the rename."""
    steps = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        steps.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, (tmp_path / "a").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_file(tmp_path / "a", b"x")
    assert len(steps) == 2
    assert steps[0][0].endswith(".partial") and steps[0][1] is False
    assert steps[1] == (tmp_path.name, True)


def test_a_full_disk_is_named_with_a_remedy() -> None:
    with pytest.raises(OSError) as full:  # the kernel's own ENOSPC, through pyarrow
        fs.LocalFileSystem().open_output_stream("/dev/full").write(b"x" * (1 << 20))
    error = storage_error("out.parquet", full.value)
    assert error.exit_code == 75
    assert str(error) == "out.parquet: no space left; free some space, then run again to resume"


def test_unwritable_outputs(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.parquet")
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    for bad, why in (
        (tmp_path, "is a directory"),
        (tmp_path / "no" / "x", "does not exist"),
        ("/proc/x", "cannot write"),
    ):
        with pytest.raises(InputError, match=why):
            check_writable(bad)


def test_uris() -> None:
    with pytest.raises(InputError, match="no store is called nosuch"):
        Location.of("nosuch://bucket/x")
    for name in ("s3://bucket/x?token=y", "S3://b/part-?/day=1/a@b:c", "hdfs://h:8020/a@b", "a?b=c", "a:b@c"):
        assert shown(name) == name.removesuffix("?token=y")
    for harmless in ("https://host:8080/a/u@b.com/x", "https://help.example/a?b", "file:///a?b=c.parquet"):
        assert shown(harmless) == harmless
    for credentials in ("key:secret", "key:se/cr+et=", "key:12/secret", "key:s@e/c@ret", "token"):
        assert shown(f"s3://{credentials}@bucket/x") == "s3://bucket/x"
        with pytest.raises(InputError, match="it holds credentials"):
            Location.of(f"s3://{credentials}@bucket/x")
    assert shown("https://host/x?b/c=secret") == "https://host/x"
    for name in ("file:///a/b", "FILE:///a/b"):
        assert Location.of(name).path == "/a/b" and Location.of(name).local and is_local(name)
    assert not is_local("hdfs://host/a")


@pytest.mark.parametrize(
    "path", ["o//t/", "in/a//b.parquet", "in/./c.parquet", "../c.parquet", "in/..", "/a", "*//a"]
)
def test_a_stores_address_that_its_client_cannot_ask_for_is_refused(path: str) -> None:
    with pytest.raises(InputError) as refused:
        Location.of(f"s3://bucket/{path}")
    assert str(refused.value).startswith(
        f"cannot open s3://bucket/{path}: a segment of its path is empty, `.` or"
    )
    for sound in ("", "/", "/in", "/in/", "/.a/..b/c..", "/**/a"):
        assert Location.of(f"s3://bucket{sound}").path == f"bucket{sound.rstrip('/')}"


@pytest.mark.parametrize("key", ["a//b", "./c", "a/../b", "a\x01b", 'a"b//c', "a\nb"])
def test_a_key_that_a_stores_client_refuses_is_named(key: str) -> None:
    import obstore
    from obstore.store import MemoryStore

    with pytest.raises(OSError, match=r"has a segment that is empty, `\.` or `\.\.`") as refused:
        asked(obstore.head, MemoryStore(), key)
    assert refused.value.errno == errno.EINVAL and repr(key) in str(refused.value.strerror)
    with pytest.raises(ValueError, match="ours"):
        asked(failing)


def failing() -> None:
    raise ValueError("a fault of ours")


def test_sha256_reads_the_whole_file(tmp_path: Path) -> None:
    import hashlib

    data = bytes(range(256)) * 10_000
    (tmp_path / "x").write_bytes(data)
    assert Location.of(tmp_path / "x").sha256() == hashlib.sha256(data).hexdigest()
    with pytest.raises((OSError, pa.ArrowException)):
        Location.of(tmp_path / "y").sha256()
