"""Every error that a user can meet, with the exit code it ends in.

    BatchRouteError                     2
    ├── InputError                      2    the backlog or an option is refused; nothing was written
    │   └── BacklogError                2    the backlog's own fault, whatever else may change
    ├── ConfigError                     2    a training config is refused
    ├── ContractError                   2    the contract is refused
    ├── DatasetError                    2    a labelled dataset is refused, with file and line
    ├── AdapterError                    2    an adapter bundle or a base model is refused
    │   └── PositionsError              2    the contract's longest row is longer than the base can read
    ├── InstallationError               2    a package is missing
    ├── OutputLockedError               4    another run holds this output
    ├── UnfinishedError                75    units that others score have no receipt yet
    ├── EngineError                    75    the engine failed; run again to resume
    └── StorageError                   75    the machine failed (disk full, …); run again to resume

    KeyboardInterrupt, SystemExit
    └── Interrupted                 128 + n  signal n; no fault, so no `except Exception` takes it for one

Each message is one line that says what is wrong and what to do about it. Foreign exceptions are translated
where they enter, with ``raise … from``; what nobody foresaw is translated by :func:`ours` where a command
ends.
"""

import atexit
import contextlib
import errno
import re
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

EXIT_TOO_MANY_ERRORS = 3  # no error: the output is complete, but more of its rows are errors than allowed

# What a terminal obeys, turns the direction of writing or is not seen at all, and halves of characters.
_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e0fff]"
)
# A secret may hold slashes; a web server may have a port. Before an Azure account's name stands a container.
USER = re.compile(
    r"(?:(?<=http)|(?<=https))://[^/@:]*:(?!\d{1,5}/).*@|(?<!hdfs)(?<!http)(?<!https)://[^/@:]*:.*@|"
    r"://(?![^/@:]*@[^/@]*\.core\.windows\.net)[^/]*@",
    re.DOTALL | re.IGNORECASE,
)
# A `?` before a path's next folder, as in `s3://bucket/part-?/day=1`, is a glob's.
OPTIONS = re.compile(r"(https?://[^?]*(?=\?.*=)|(?<!file)://[^?]*(?=\?[^/?]*=)).*", re.DOTALL | re.IGNORECASE)
_URI = re.compile(r"[a-z][a-z0-9+.-]{0,30}://\S+", re.IGNORECASE)
LONG = 4096  # characters of a message, or of a URI in it


def shown(name: str) -> str:
    """`name` on one line, without the credentials that a URI may carry."""
    return OPTIONS.sub(r"\1", USER.sub("://", name)).replace("\n", " ").replace("\r", " ")


def without_credentials(text: str) -> str:
    """`text` with each URI in it as it is :func:`shown`, or left out where it is too long to be one."""
    return _URI.sub(lambda found: shown(found[0]) if len(found[0]) <= LONG else "…", text)


def one_line(text: str) -> str:
    """`text` of whatever origin as it may be shown: on one line, nothing in it obeyed by a terminal."""
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\n", " "))


class BatchRouteError(Exception):
    """Base of all errors that end a command with one line and an exit code."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        text = one_line(without_credentials(message))
        super().__init__(text if len(text) <= LONG else f"{text[:3000]} … {text[-1000:]}")


class InputError(BatchRouteError):
    pass


class BacklogError(InputError):
    pass


class ConfigError(BatchRouteError):
    pass


class ContractError(BatchRouteError):
    pass


class DatasetError(BatchRouteError):
    pass


class AdapterError(BatchRouteError):
    pass


class PositionsError(AdapterError):
    pass


class InstallationError(BatchRouteError):
    pass


class OutputLockedError(BatchRouteError):
    exit_code = 4


class UnfinishedError(BatchRouteError):
    exit_code = 75


class EngineError(BatchRouteError):
    exit_code = 75


class StorageError(BatchRouteError):
    exit_code = 75


class Interrupted(KeyboardInterrupt, SystemExit):
    """A signal asked for the end, or the clock did: what is done is kept. Where nothing takes it, the process
    exits with 128 + the signal's number, or with 75, and without a traceback.
    """

    def __init__(self, number: int) -> None:
        late = number == signal.SIGALRM
        super().__init__(f"{'the deadline has come' if late else 'interrupted'}; run again to resume")
        self.exit_code = self.code = StorageError.exit_code if late else 128 + number

    def __str__(self) -> str:
        return str(self.args[0])


class InvalidAnswer(ValueError):
    """A model's answer that the contract does not accept. A row's problem, never the job's."""


def nearest(name: str, known: list[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name nearest to `name`, or nothing when none is near."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


# Those that end a process from outside: Ctrl-C, a stop, a closed terminal, Ctrl-\, too much processor time.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)
_received: list[int] = []
KEEPING = 15.0  # seconds to keep what is done and to end the engines, before a deadline


def _interrupt(number: int, frame: FrameType | None) -> None:
    _ignore()
    _received.append(number)
    raise Interrupted(number)


def signals_exit() -> None:
    """From now on each of `ENDING` raises `Interrupted`, once: a second one must not cut the last commit. For
    a program's first line. SIGHUP stays ignored where it is (nohup).
    """
    _handle()
    atexit.register(_ignore)  # or Python's own end would give each signal its deadly meaning back


def _handle() -> None:
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _ignore() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """The same within the block, for a program that did not begin with :func:`signals_exit`.

    In another thread than the main one nothing changes: Python lets only that one handle signals.
    """
    previous = {number: signal.getsignal(number) for number in ENDING}
    in_main = threading.current_thread() is threading.main_thread()
    if _received or _interrupt in previous.values() or not in_main:
        yield
        return
    try:
        _handle()
        yield
    finally:
        _received.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Within :func:`signals_raise`: raise `Interrupted` in the block a little before `seconds` are over, so
    that what is done can still be kept. Raises `InputError` outside the main thread, where no signal arrives.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise InputError("a deadline needs the program's main thread; call it from there")
    previous = signal.signal(signal.SIGALRM, _interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds - min(KEEPING, seconds / 10))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


_NO_MEMORY = re.compile(  # or no further thread or process
    "cannot allocate memory|failed to map segment|can't start new thread|resource temporarily unavailable",
    re.IGNORECASE,
)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
EXTRAS = {  # of this package, by the module that is missing
    **dict.fromkeys(("bitsandbytes", "gguf", "psutil", "torch", "transformers", "vllm"), "engine"),
    **dict.fromkeys(("datasets", "matplotlib", "peft", "scipy", "trl"), "train"),
    **dict.fromkeys(("starlette", "uvicorn"), "review"),
    "mlflow": "mlflow",
    "obstore": "stores",
}
LASTING = {  # what a rerun would meet again: a person has to change something
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EROFS, errno.EINVAL, errno.ENXIO, errno.EOPNOTSUPP, errno.ENOSYS,
}  # fmt: skip
PASSING = {errno.ENOENT, errno.EEXIST}  # of these, what another process may have caused while we worked


def ours(error: BaseException) -> BatchRouteError | Interrupted:
    """What a command ends with, whatever stopped it: where a signal asked for the end, that is the reason,
    whatever a library made of it. Of a foreign exception only the type and the place are told: its words may
    be a request's.
    """
    if _received:
        return Interrupted(_received[0])
    if isinstance(error, BatchRouteError):
        return _by_cause(error)
    if isinstance(error, Interrupted):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(signal.SIGINT)
    if isinstance(error, ModuleNotFoundError):
        return missing(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return StorageError(
            "out of memory or threads; free some, or give the run more, then run again to resume"
        )
    if isinstance(error, ImportError):
        what = f"the package {error.name or 'that is needed'} cannot be loaded ({type(error).__name__})"
        return InstallationError(f"{what}; run `make setup` again")
    if isinstance(error, OSError):
        where = f" at {error.filename}" if error.filename else ""
        if error.errno in FULL:
            return StorageError(f"no space left{where}; free some space, then run again to resume")
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return StorageError("too many open files; raise `ulimit -n`, then run again to resume")
        why = error.strerror or type(error).__name__
        if error.errno in LASTING - PASSING:
            return InputError(f"{why}{where}; correct that")
        return StorageError(f"{why}{where}; correct that, then run again to resume")
    root = str(Path(__file__).parents[1])
    own = [each for each in traceback.extract_tb(error.__traceback__) if each.filename.startswith(root)]
    place = f" at {'/'.join(Path(own[-1].filename).parts[-2:])}:{own[-1].lineno}" if own else ""
    what = f"{type(error).__name__}{place}: this is a bug, please report it"
    return StorageError(f"{what}; run again to resume")


def missing(error: ModuleNotFoundError, command: str | None = None) -> InstallationError:
    """Of a package that is not installed: the extra that brings it, or those that its `command` needs."""
    extra = EXTRAS.get((error.name or "").partition(".")[0])
    if command and (extra is None or extra in command.split(",")):
        extra = command
    remedy = f"run `make setup`, or pip install 'batch-route[{extra or 'engine,train,review'}]'"
    return InstallationError(f"the package {error.name} is not installed; {remedy}")


def _by_cause(error: BatchRouteError) -> BatchRouteError:
    """Whoever refuses a file that could not be read need not ask why: what a failing disk or a full table of
    files refused, a rerun may be able to read.
    """
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno and cause.errno not in LASTING and error.exit_code == 2:
            return StorageError(f"{str(error).rpartition('; ')[0] or error}; run again to resume")
        cause = cause.__cause__
    return error
