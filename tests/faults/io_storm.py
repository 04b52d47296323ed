"""One I/O error at every position of a run: `python -m tests.faults.io_storm --every 1`.

A library that is loaded before the C library's own counts the calls that touch a file of the job (input, adapter, output,
unfinished work), in all of the run's processes, and lets the n-th one fail, once. Python, pyarrow and SQLite all go through
it. The run must be complete, or exit with 75 and one line; run again, it must have the bytes of an undisturbed run.
"""

import argparse
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults.kill_storm import write_input

ROWS = 600
ERRORS = (errno.EIO, errno.ENOSPC, errno.EMFILE)  # position by position
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

static long *count;  /* shared by all processes of the run */
static long at;
static int code;
static const char *root;

__attribute__((constructor)) static void start(void) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    const char *path = getenv("FAULT_COUNTER");
    if (!path) return;
    int fd = real(path, O_RDWR);
    count = mmap(0, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    at = atol(getenv("FAULT_AT"));
    code = atoi(getenv("FAULT_ERRNO"));
    root = getenv("FAULT_ROOT");
}

static int fails(const char *path) {
    if (!count || !path || strncmp(path, root, strlen(root))) return 0;
    if (__sync_add_and_fetch(count, 1) != at) return 0;
    errno = code;
    return 1;
}

static int fd_fails(int fd) {
    char link[64], path[PATH_MAX];
    if (!count) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return fails(path);
}

#define REAL(type, name, ...) type (*real)(__VA_ARGS__) = dlsym(RTLD_NEXT, #name)
#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
    REAL(int, name, const char *, int, ...); return fails(path) ? -1 : real(path, flags, mode); }
OPEN(open) OPEN(open64)
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
    REAL(int, name, int, const char *, int, ...); return fails(path) ? -1 : real(folder, path, flags, mode); }
OPENAT(openat) OPENAT(openat64)
ssize_t read(int fd, void *data, size_t size) {
    REAL(ssize_t, read, int, void *, size_t); return fd_fails(fd) ? -1 : real(fd, data, size); }
ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t); return fd_fails(fd) ? -1 : real(fd, data, size); }
#define PIO(name, kind) ssize_t name(int fd, kind *data, size_t size, off_t place) { \
    REAL(ssize_t, name, int, kind *, size_t, off_t); return fd_fails(fd) ? -1 : real(fd, data, size, place); }
PIO(pread, void) PIO(pread64, void) PIO(pwrite, const void) PIO(pwrite64, const void)
#define ON_FD(name) int name(int fd) { REAL(int, name, int); return fd_fails(fd) ? -1 : real(fd); }
ON_FD(fsync) ON_FD(fdatasync)
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *); return fails(from) ? -1 : real(from, to); }
#define ON_PATH(name) int name(const char *path) { \
    REAL(int, name, const char *); return fails(path) ? -1 : real(path); }
ON_PATH(unlink) ON_PATH(rmdir)
int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t); return fails(path) ? -1 : real(path, mode); }
"""


class Storm:
    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.output = folder / "job", folder / "job/out.parquet"
        self.folder.mkdir()
        write_input(self.folder / "in.parquet", ROWS)
        shutil.copytree(bundle, self.folder / "bundle")
        self.library, self.counter = folder / "fault.so", folder / "counter"
        (folder / "fault.c").write_text(SOURCE)
        subprocess.run(
            ["cc", "-O1", "-shared", "-fPIC", "-o", self.library, folder / "fault.c", "-ldl"], check=True
        )
        code, errors = self._run(at=0)
        assert code == 0, errors
        self.positions = int.from_bytes(self.counter.read_bytes()[:8], "little")
        self.whole = self.output.read_bytes()

    def fail(self, at: int, number: int) -> str:
        """One run whose `at`-th call fails with `number`, and its rerun."""
        self.reset()
        code, errors = self._run(at, number)
        what = f"{errno.errorcode[number]} at {at} of {self.positions}: exit {code}, {errors!r}"
        assert "Traceback" not in errors and code in (0, 75), what
        ended = "complete" if code == 0 else "75"
        if code:
            assert errors.strip().splitlines()[-1].startswith("Error: "), what
            code, errors = self._run(at=0)
            assert code == 0, f"{what}; run again: exit {code}, {errors!r}"
        assert self.output.read_bytes() == self.whole, what
        return ended

    def reset(self) -> None:
        for path in self.folder.iterdir():
            if path.name.startswith("out.parquet"):
                path.unlink()

    def _run(self, at: int, number: int = errno.EIO) -> tuple[int, str]:
        self.counter.write_bytes(bytes(8))
        environment = {
            **os.environ,
            "LD_PRELOAD": str(self.library),
            "FAULT_COUNTER": str(self.counter),
            "FAULT_AT": str(at),
            "FAULT_ERRNO": str(number),
            "FAULT_ROOT": str(self.folder),
        }
        command = [
            *(sys.executable, "-m", "batch", str(self.folder / "in.parquet"), str(self.output)),
            *("--adapter", str(self.folder / "bundle"), "--engine", "replay", "--max-error-rate", "1"),
        ]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="only every so many-th position")
    parser.add_argument("--positions", metavar="A:B", default="1:", help="from A up to, without, B")
    parser.add_argument("--adapter", default="champion")
    options = parser.parse_args()
    from batch.adapter.registry import Registry

    first, _, last = options.positions.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        storm = Storm(Path(folder).resolve(), Registry().resolve(options.adapter))
        ends: Counter[str] = Counter()
        for at in range(int(first), min(int(last or sys.maxsize), storm.positions + 1), options.every):
            try:
                ends[storm.fail(at, ERRORS[at % len(ERRORS)])] += 1
            except AssertionError as error:
                ends["wrong"] += 1
                print(error, flush=True)
    print(f"{storm.positions} positions, {ends.total()} tried: {dict(ends)}; same bytes where none is wrong")
    sys.exit(bool(ends["wrong"]))


if __name__ == "__main__":
    main()
