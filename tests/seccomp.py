"""Runs Python as systemd's RestrictAddressFamilies= would let it: `python -m tests.seccomp FAMILIES CODE`."""

import ctypes
import errno
import platform
import socket
import struct
import sys

SOCKET = {"x86_64": 41, "aarch64": 198}  # the call's number
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EAFNOSUPPORT
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of a filter (seccomp(2), linux/filter.h)
NO_NEW_PRIVS, SECCOMP, FILTER = 38, 22, 2  # of prctl(2)


def allow_only(families: list[str]) -> None:
    """Have socket(2) refuse every other address family, in this process and its children."""
    program = [(LOAD, 0, 0, 0), (EQUAL, 1, 0, SOCKET[platform.machine()]), (RETURN, 0, 0, ALLOW)]
    program.append((LOAD, 0, 0, 16))  # the first argument
    for family in families:
        program += [(EQUAL, 0, 1, int(getattr(socket, family))), (RETURN, 0, 0, ALLOW)]
    program.append((RETURN, 0, 0, REFUSE))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    given = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for request in ((NO_NEW_PRIVS, 1, 0, 0, 0), (SECCOMP, FILTER, given, 0, 0)):
        if libc.prctl(*request):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    allow_only(sys.argv[1].split())
    exec(sys.argv[2])
