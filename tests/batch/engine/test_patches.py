"""A library's own code is replaced where it still has it, under the name that it had, and the new code is seen to act."""

from types import ModuleType

import pytest

from batch.engine.patches import idle, installed, patch, plug
from batch.errors import EngineError


@pytest.fixture
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    name = f"library_of_{request.node.name.partition('[')[0]}"
    module = ModuleType(name)
    vars(module).update(__version__="3.10.1", slow=lambda x: x + 1, Slow=type("Slow", (), {}), LIMIT=3)
    monkeypatch.setitem(__import__("sys").modules, name, module)
    return module


class Quick:
    def __init__(self, size: int) -> None:
        self.size = size


def test_it_acts_in_the_librarys_place_and_says_so(library: ModuleType) -> None:
    slow, quick = f"{library.__name__}.slow", f"{library.__name__}.Slow"
    patch(library, "slow", lambda x: x + 2, made_for="3.10")
    patch(library, "Slow", Quick, made_for="3.10")
    assert installed()[slow] == f"{library.__name__} 3.10.1"
    assert {slow, quick} <= set(idle())
    assert library.slow(1) == 3 and library.Slow(5).size == 5
    assert not {slow, quick} & set(idle())


def test_twice_is_once(library: ModuleType) -> None:
    for _ in range(2):
        patch(library, "slow", lambda x: x * 10, made_for="3")
        first = library.slow
    assert library.slow is first and library.slow(4) == 40


@pytest.mark.parametrize("made_for", ["3.1", "4", "3.10.2"])
def test_another_release_is_named(library: ModuleType, made_for: str) -> None:
    patch(library, "slow", lambda x: x, made_for=made_for)
    assert installed()[f"{library.__name__}.slow"] == f"{library.__name__} 3.10.1, made for {made_for}"


@pytest.mark.parametrize(
    ("name", "new"), [("slower", len), ("Slow", len), ("slow", Quick), ("LIMIT", lambda: 4)]
)
def test_a_name_that_is_gone_or_another_thing_is_refused(library: ModuleType, name: str, new: object) -> None:
    before = dict(vars(library))
    with pytest.raises(EngineError, match=r"3\.10\.1.*made for 3\.10.*make setup"):
        patch(library, name, new, made_for="3.10")
    assert vars(library) == before and f"{library.__name__}.{name}" not in installed()


def test_a_pluggable_layer_is_told_of_like_a_patch(library: ModuleType) -> None:
    plugged: list[tuple[type, str]] = []

    class Layer:
        @classmethod
        def register_oot(cls, new: type, name: str) -> None:
            plugged.append((new, name))

    class Mine:
        pass

    Layer.__module__ = library.__name__
    full = f"{library.__name__}.{Layer.__name__}"
    for _ in range(2):
        plug(Layer, Mine, made_for="3.10")
    assert plugged == [(Mine, "Layer")] and full in installed() and full in idle()
    Mine()
    assert full not in idle()
