"""Object stores, S3, Google's and Azure's alike: one client (obstore), and its errors as the system's own.

Credentials and endpoints come from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`) and are never told: a
store's own words are cut down to a status and a code.
"""

import contextlib
import errno
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from batch.background import in_background

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Answer = TypeVar("Answer")

AZURE = ("az", "abfs", "abfss")
SCHEMES = {"gcs": "gs", **{name: name for name in ("s3", "gs", *AZURE)}}  # to obstore's
SILENCE = timedelta(seconds=30)  # without a byte of an answer
LONGEST = timedelta(minutes=5)  # for one request
PATIENCE = timedelta(seconds=60)  # for which a request is tried again
FIRST = timedelta(seconds=8)  # instead of either, for what shows whether the store is there
CONNECT = timedelta(seconds=4)
STATUS = re.compile(r"status code: (\d{3})|status: (\d{3})")
ENDPOINT = re.compile(r"(AWS|AZURE|GOOGLE)_\w*ENDPOINT\w*")
LOOPBACK = re.compile(r"http://(127\.\d+\.\d+\.\d+|localhost|\[::1\])[:/]")
CODE = re.compile(r"<Code>(\w{1,60})</Code>")
BAD_KEY = re.compile(r'Path "(.*?)"(?: contained|: Encountered)', re.DOTALL)


@functools.cache
def client(root: str, first: bool = False) -> "ObjectStore":
    """The store of ``scheme://bucket``. Raises `OSError` where the environment tells no way to it."""
    from obstore.store import from_url

    _check_endpoints()
    patience, silence = (FIRST, FIRST) if first else (PATIENCE, SILENCE)
    with translated(), _valid():
        return from_url(
            root,
            client_options={
                "allow_http": _plain_http(),
                "connect_timeout": CONNECT,
                "read_timeout": silence,
                "timeout": LONGEST,
            },
            retry_config={"max_retries": 3 if first else 10, "retry_timeout": patience},
        )


@contextlib.contextmanager
def _valid() -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise OSError(errno.EINVAL, "no bucket has such a name") from None


def _check_endpoints() -> None:
    """The client would end in a panic. Raises `OSError`."""
    for name in filter(ENDPOINT.fullmatch, os.environ):
        address = os.environ[name].strip()
        try:
            sound = urlsplit(address).scheme in ("http", "https") and urlsplit(address).hostname
        except ValueError:
            sound = None
        if address and not sound:
            raise OSError(errno.EINVAL, f"${name} is no address of a store; write https://HOST")


def _plain_http() -> bool:
    """Whether the environment allows it, or asks for it on this machine, where nobody can listen."""
    told = [value for name, value in os.environ.items() if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]
    allowed = [os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() for cloud in ("AWS", "AZURE", "GOOGLE")]
    return bool({"1", "true"} & set(allowed)) or any(map(LOOPBACK.match, told))


def asked(call: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
    """What a call of the client's returns. Raises `OSError`.

    The client does not hear signals, and a silent store may hold it for a minute. So the main thread, which
    does, waits for another.
    """
    with translated():
        if threading.current_thread() is threading.main_thread():
            return in_background(functools.partial(call, *arguments, **options)).result()
        return call(*arguments, **options)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """A store's errors as an `OSError`, by whose number one can tell what a rerun would meet again."""
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        if error.errno:
            raise
        raise _os_error(error) from None
    except exceptions.AlreadyExistsError:
        raise FileExistsError(errno.EEXIST, "it exists already") from None
    except exceptions.PreconditionError:
        raise OSError(errno.ESTALE, "it was changed meanwhile") from None
    except exceptions.BaseError as error:  # `from None`: its words may hold a signed address
        raise _os_error(error) from None
    except ValueError as error:  # of a key that it does not ask the store for
        if not BAD_KEY.search(str(error)):
            raise
        raise _os_error(error) from None


def _os_error(error: Exception) -> OSError:
    told = str(error)
    status = next((int(one or other) for one, other in STATUS.findall(told)), 0)
    if key := BAD_KEY.search(told):
        what = "has a segment that is empty, `.` or `..`, or a control character"
        return OSError(errno.EINVAL, f"the key {key[1]!r} {what}; rename the object")
    code = CODE.search(told)
    named = f" ({code[1]})" if code else ""
    if isinstance(error, FileNotFoundError) or status == 404:
        bucket = code and re.search("Bucket|Container", code[1])
        return FileNotFoundError(errno.ENOENT, "no such bucket" if bucket else "no such object")
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        return PermissionError(errno.EACCES, f"the store denies access{named}; check the credentials")
    if "BadScheme" in told:
        return OSError(errno.EINVAL, "its address is plain HTTP; set AWS_ALLOW_HTTP=true, or use HTTPS")
    if "kind: Connect" in told:
        return OSError(errno.ECONNREFUSED, "the store cannot be reached; check the address and the network")
    if "kind: Timeout" in told:
        return OSError(errno.ETIMEDOUT, "the store does not answer")
    if status >= 500 or status in (408, 429):
        return OSError(errno.EIO, f"the store failed with status {status}{named}")
    if status == 409:
        return OSError(errno.EBUSY, f"the store is at work on it{named}")
    if status:
        return OSError(errno.EINVAL, f"the store refused with status {status}{named}")
    if "kind: " in told or "retries" in told:
        return OSError(errno.EIO, "the connection to the store failed")
    missing = "account" if "MissingAccount" in told else "configuration"
    return OSError(errno.EINVAL, f"the store's {missing} is missing or wrong; set it in the environment")
