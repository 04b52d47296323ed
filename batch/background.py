"""Calls in threads that nobody has to wait for."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")
Item = TypeVar("Item")
END: Any = object()


def in_background(call: Callable[[], Result]) -> Future[Result]:
    """Start `call` in a daemon thread. Unlike an executor's, it never keeps the process from ending, and who
    waits for the result hears signals.
    """
    result = Future[Result]()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """`items`, each made in the background while the one before it is used."""
    following = in_background(lambda: next(items, END))
    while (item := following.result()) is not END:
        following = in_background(lambda: next(items, END))
        yield item
