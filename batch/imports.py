"""Importing large libraries without the garbage collector.

Modules, classes and functions are full of cycles and stay until the program ends. Python's collector looks
at all of them again whenever a quarter more has come: it took a quarter of the time that importing torch,
transformers and vLLM takes, and more at the program's end.
"""

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """What is made in the block is never looked at by the collector; what is made later is, as ever."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)  # the system takes the memory back
