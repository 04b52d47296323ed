"""A relative path is found from the current directory first, then above what names it, the nearest first."""

from pathlib import Path

import pytest

from batch.adapter.references import find_upwards


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`project/adapters/abc`, seen from `elsewhere`."""
    for name in ("project/adapters/abc", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project/adapters/abc"


def test_the_nearest_folder_above_wins(bundle: Path) -> None:
    for folder in (bundle.parents[1], bundle.parents[0]):
        (folder / "rows.jsonl").write_text("")
        assert find_upwards("rows.jsonl", bundle) == folder / "rows.jsonl"


def test_the_current_directory_comes_first(bundle: Path) -> None:
    for folder in (bundle.parent, Path()):
        (folder / "rows.jsonl").write_text("")
    assert find_upwards("rows.jsonl", bundle) == Path("rows.jsonl")


def test_what_is_not_wanted_is_passed_over(bundle: Path) -> None:
    (bundle.parent / "data").mkdir()
    (bundle.parents[1] / "data").write_text("")
    assert find_upwards("data", bundle) == bundle.parents[1] / "data"
    assert find_upwards("data", bundle, Path.is_dir) == bundle.parent / "data"
    assert find_upwards("data", bundle, lambda path: False) is None
    assert find_upwards("data") is None  # nothing names it, and it is not here
