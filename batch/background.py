"""Calls in threads that nobody has to wait for."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
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
        _settle(result, call)

    threading.Thread(target=run, daemon=True).start()
    return result


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """`items`, each made in the background while the one before it is used."""
    asked, made = SimpleQueue[bool](), SimpleQueue[Future[Item]]()

    def make() -> None:
        while asked.get():
            result = Future[Item]()
            _settle(result, lambda: next(items, END))
            made.put(result)

    threading.Thread(target=make, daemon=True).start()
    try:
        asked.put(True)
        while (item := made.get().result()) is not END:
            asked.put(True)
            yield item
    finally:
        asked.put(False)


def _settle(result: Future[Result], call: Callable[[], Result]) -> None:
    """Set what `call` returns or raises."""
    try:
        result.set_result(call())
    except BaseException as error:
        result.set_exception(error)
