"""`batch-train base` and GGUF files as `[base] model`: what cannot be one is refused with what to do.

`tests/train/test_smollm2.py` converts a real one.
"""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from batch.adapter.base_model import resolve_base
from batch.errors import AdapterError, StorageError
from train.cli import main


@pytest.mark.parametrize("source", ["nothing.gguf", "smol"])
def test_a_source_that_is_none_is_refused(source: str) -> None:
    result = CliRunner().invoke(main, ["base", source])
    assert result.exit_code == 2
    assert result.output == f"Error: {source} is not a GGUF file; give its path, or one of smollm2\n"


def test_a_damaged_file_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_ROUTE_BASES", str(tmp_path / "bases"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(AdapterError, match=r"model\.gguf: the base model cannot be read: .*; copy it again"):
        resolve_base(str(tmp_path / "model.gguf"))
    assert list((tmp_path / "bases").iterdir()) == []


def test_a_full_disk_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It said to copy the file again, with 2. The child's last words are safetensors', no `OSError`."""
    monkeypatch.setenv("BATCH_ROUTE_BASES", str(tmp_path / "bases"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (full := tmp_path / "python").write_text(
        "#!/bin/sh\necho 'SafetensorError: I/O error: No space left on device (os error 28)' >&2\nexit 1\n"
    )
    full.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(full))
    with pytest.raises(StorageError, match="no space left; free some space, then run again"):
        resolve_base(str(tmp_path / "model.gguf"))
    assert list((tmp_path / "bases").iterdir()) == []


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_is_there_is_not_taken_for_the_files(
    tmp_path: Path, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was printed as if it had been made, whatever lay in it."""
    monkeypatch.setenv("BATCH_ROUTE_BASES", str(tmp_path / "bases"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (home := tmp_path / ("mine" if named else "bases/model")).mkdir(parents=True)
    words = ["base", str(tmp_path / "model.gguf"), *(["--out", str(home)] if named else [])]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and f"{home} exists; use it as it is" in result.output


def test_a_folder_of_several_says_to_name_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(AdapterError, match="holds 2 GGUF files; name one of them"):
        resolve_base(str(tmp_path))
