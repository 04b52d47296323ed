"""What a child process does about the parent that started it."""

import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1  # prctl(2)


def own_id() -> int:
    """What to give a child for :func:`tie_to`: this process's id, or 0 where a thread starts the child (the
    kernel would take the thread's end for the parent's).
    """
    return os.getpid() if threading.current_thread() is threading.main_thread() else 0


def tie_to(parent: int) -> None:
    """Die with the parent, however it dies: a child left behind would keep its GPU or its memory."""
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
