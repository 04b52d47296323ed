"""A base's digest is that of its files as they are, and each is read once for as long as it stays as it is."""

import hashlib
import os
from pathlib import Path

import pytest

from batch.adapter import digests
from batch.adapter.base_model import base_digest
from batch.storage.digest import bundle_digest, file_digest


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name, content in (("config.json", b"{}"), ("a.safetensors", b"weights"), ("b.safetensors", b"more")):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def plain(base: Path) -> str:
    files = [base / "config.json", *base.glob("*.safetensors")]
    return bundle_digest({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})


@pytest.mark.parametrize("name", ["config.json", "a.safetensors", "b.safetensors"])
def test_a_change_is_seen_and_what_has_not_changed_is_not_read(
    base: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def reading(file: Path) -> str:
        read.append(file.name)
        return file_digest(file)

    monkeypatch.setattr(digests, "file_digest", reading)
    first = base_digest(base)
    assert first == plain(base) == base_digest(base)
    assert sorted(read) == ["a.safetensors", "b.safetensors", "config.json"]
    file, before = base / name, (base / name).stat()
    file.write_bytes(file.read_bytes()[::-1][:-1] + b"!")  # as long as it was
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert base_digest(base) == plain(base) != first
    assert read[3:] == [name]
    (base / "c.safetensors").write_bytes(b"a file more")
    assert base_digest(base) == plain(base) != first
