"""vLLM's errors as this project's: what a rerun may mend, and what it would meet again."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from batch.errors import AdapterError, BatchRouteError, EngineError
from batch.parent import LAST_LINES, log_lines

LACKING = re.compile("memory|CUDA error|NCCL error", re.IGNORECASE)
# All that vLLM says where a part of an engine that spans devices fails: the part's own words are in the log.
IN_A_PART = re.compile("WorkerProc initialization failed|Executor failed")
# A traceback's last line, behind what the logger puts in front of each
CAUSE = re.compile(r"(?:^|\s)((?:\w+\.)*[A-Z]\w*(?:Error|Exception)\b.*)")
STDERR = 2  # of the engine's process and of its parts, and a file: see `start_child`


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """vLLM's own errors, told apart: what the machine lacks may be there the next time (75), the rest would
    be refused again (2). A part that fails lacks something: what a base is refused for is found before.
    """
    try:
        yield
    except (BatchRouteError, ImportError):
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {one_line(error)}"
        in_a_part = IN_A_PART.search(told)
        if in_a_part and (cause := cause_in(log_lines(STDERR))):
            told += f" Its log: {cause}"
        lacking = in_a_part or isinstance(error, OSError | MemoryError) or LACKING.search(str(error))
        kind = EngineError if lacking else AdapterError
        raise kind(f"{what}: {told}") from error


def cause_in(log: list[str]) -> str:
    """The first error of the part that failed first, which the others' follow from; or the last lines."""
    begins = next((at for at, line in enumerate(log) if "WorkerProc failed" in line), 0)
    found = filter(None, map(CAUSE.search, log[begins:]))
    return next((each[1] for each in found), " / ".join(log[-LAST_LINES:]))


def one_line(error: BaseException) -> str:
    """What it says; of an `assert` that says nothing, where it stands."""
    if text := " ".join(str(error).split()):
        return text[:300]
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(place.filename).name}, line {place.lineno}: {place.line}"
