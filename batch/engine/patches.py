"""Where a library's own code is replaced in this process: one way to do it, which says what it did.

A pinned library is changed at run time where it costs too much and has no setting for it. Its next release
may rename what is replaced, and nobody would see it but by the clock. So a name that is gone is an error, and
whether the new code was ever called is told with what the canary showed.
"""

import functools
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from batch.errors import EngineError

_installed: dict[str, Any] = {}  # what stands there now, by its full name
_releases: dict[str, str] = {}  # the library's, and the one that it was made for if that is another
_acting: set[str] = set()


def patch(module: ModuleType, name: str, new: Any, made_for: str) -> None:
    """Put `new`, a function or a class, in the place of `module.name`. Doing it again changes nothing.

    `made_for` begins the release that it was written for ("0.32"). Raises `EngineError` where the library has
    no such name, or another kind of thing under it.
    """
    full = f"{module.__name__}.{name}"
    old = getattr(module, name, None)
    if old is not None and old is _installed.get(full):
        return
    if not callable(old) or isinstance(old, type) != isinstance(new, type):
        raise EngineError(
            f"{full} of {_release(module.__name__)} is not what batch-route replaces (made for {made_for}); "
            "run `make setup`, which installs the pinned versions"
        )
    _installed[full] = _noting(new, full)
    setattr(module, name, _installed[full])
    _releases[full] = _told(module.__name__, made_for)


def plug(layer: Any, new: type, made_for: str) -> None:
    """Have vLLM make `new` of one of its pluggable layers, which it allows, wherever it makes that. Doing it
    again changes nothing.
    """
    full = f"{layer.__module__}.{layer.__name__}"
    if full not in _installed:
        _installed[full] = _noting(new, full)
        layer.register_oot(new, name=layer.__name__)
        _releases[full] = _told(layer.__module__, made_for)


def installed() -> Mapping[str, str]:
    """What was replaced, by its full name, with the release of its library."""
    return dict(_releases)


def idle() -> list[str]:
    """What was replaced and has not been called: after a request has run, the library goes another way."""
    return sorted(_installed.keys() - _acting)


def _told(module: str, made_for: str) -> str:
    found = _release(module)
    tried = f"{found}.".partition(" ")[2].startswith(f"{made_for}.")
    return found if tried else f"{found}, made for {made_for}"


def _release(module: str) -> str:
    package = module.partition(".")[0]
    return f"{package} {getattr(sys.modules[package], '__version__', 'unknown')}"


def _noting(new: Any, full: str) -> Any:
    """`new`, which notes that it was called, or if it is a class that it was made."""
    if isinstance(new, type):
        setattr(new, "__init__", _noting(getattr(new, "__init__"), full))  # noqa: B009, B010  # mypy's terms
        return new

    @functools.wraps(new)
    def noting(*args: Any, **kwargs: Any) -> Any:
        _acting.add(full)
        return new(*args, **kwargs)

    return noting
