"""What is made ahead comes in order, one at a time, with its errors where they belong."""

import threading
import time
from collections.abc import Iterator

import pytest

from batch.background import one_ahead


def test_items_come_in_order_and_one_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    taken = []
    for number in one_ahead(items()):
        time.sleep(0.02)
        assert made == list(range(min(5, number + 2)))
        taken.append(number)
    assert taken == list(range(5)) and list(one_ahead(iter(()))) == []


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(ahead)


def test_its_thread_ends_with_it() -> None:
    before = set(threading.enumerate())
    ahead = one_ahead(iter(range(1000)))
    assert next(ahead) == 0
    (thread,) = set(threading.enumerate()) - before
    del ahead
    thread.join(5)
    assert not thread.is_alive()
