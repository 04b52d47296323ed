"""The collector is off while libraries are imported, and never looks at them again."""

import gc
import subprocess
import sys

import pytest

from batch.imports import uncollected
from tests.conftest import ROOT


def test_what_is_made_in_the_block_is_not_looked_at_again() -> None:
    with uncollected():
        assert not gc.isenabled()
        kept: list[object] = [[]]
    later: list[object] = [[]]
    seen = {id(each) for each in gc.get_objects()}
    assert gc.isenabled() and id(later) in seen and id(kept) not in seen
    gc.unfreeze()


def test_a_failed_import_leaves_it_on() -> None:
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()


@pytest.mark.parametrize(
    "command",
    [
        "from batch.cli import main; main(['/no/file', 'o'])",
        "from train.cli import main; main(['lint', '/no/file'])",
    ],
)
def test_both_programs_import_so(command: str) -> None:
    code = f"import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count())); {command}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and int(done.stdout) > 10_000, done.stderr
