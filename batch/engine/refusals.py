"""vLLM's errors as this project's: what a rerun may mend, and what it would meet again."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from batch.errors import AdapterError, BatchRouteError, EngineError


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """vLLM's own errors, told apart: what the machine lacks may be there the next time (75), the rest would
    be refused again (2).
    """
    try:
        yield
    except (BatchRouteError, ImportError):
        raise
    except Exception as error:
        lacking = isinstance(error, OSError | MemoryError) or re.search("memory|CUDA error", str(error), re.I)
        kind = EngineError if lacking else AdapterError
        raise kind(f"{what}: {type(error).__name__}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What it says; of an `assert` that says nothing, where it stands."""
    if text := " ".join(str(error).split()):
        return text[:300]
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(place.filename).name}, line {place.lineno}: {place.line}"
