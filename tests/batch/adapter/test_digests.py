"""A large file's digest is remembered on disk while the file is the same, and never longer."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from batch.adapter import digests
from batch.adapter.digests import known_digest

LARGE = 1 << 16


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_NS", 0)
    monkeypatch.setattr(digests, "LARGE", LARGE)
    return tmp_path / "cache/batch-route/digests"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    os.truncate(tmp_path / "model.safetensors", LARGE)
    return tmp_path / "model.safetensors"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def next_night(file: Path) -> str:
    digests._digest.cache_clear()  # as in a new process
    return known_digest(file)


def plant(cache: Path) -> None:
    """Another digest into the one entry: whoever gets it has not read the file."""
    (entry,) = cache.iterdir()
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "sha256": "planted"}))


def test_a_large_file_is_read_once(cache: Path, weights: Path) -> None:
    assert known_digest(weights) == sha256(weights)
    (entry,) = cache.iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600 and stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert str(weights) not in entry.read_text()
    plant(cache)
    assert next_night(weights) == "planted"
    (link := weights.with_name("link")).symlink_to(weights)
    assert next_night(link) == "planted"


def test_a_change_is_noticed_though_size_and_time_are_put_back(cache: Path, weights: Path) -> None:
    known_digest(weights)
    plant(cache)
    before = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"others!")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert next_night(weights) == sha256(weights)


def test_another_file_in_its_place_is_noticed(cache: Path, weights: Path) -> None:
    known_digest(weights)
    plant(cache)
    (other := weights.with_name("other")).write_bytes(b"x" * LARGE)
    other.replace(weights)
    assert next_night(weights) == sha256(weights)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"identity": 3}', "\ud83d"])
def test_a_damaged_entry_is_no_entry(cache: Path, weights: Path, content: str) -> None:
    known_digest(weights)
    (entry,) = cache.iterdir()
    entry.write_bytes(content.encode(errors="surrogatepass"))
    assert next_night(weights) == sha256(weights)


def test_what_may_be_written_still_is_not_remembered(
    cache: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", 3_600_000_000_000)
    assert known_digest(weights) == sha256(weights)
    assert not cache.exists()


def test_small_files_are_read_and_a_missing_cache_costs_nothing_else(cache: Path, weights: Path) -> None:
    cache.parent.parent.write_text("a file where the cache would be")
    assert known_digest(weights) == sha256(weights)
    os.truncate(weights, LARGE - 1)
    assert known_digest(weights) == sha256(weights)
