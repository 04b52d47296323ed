"""What is mounted where: a file that is, as a container may be given one, has a name that cannot be another
file's.
"""

import os
import re
from pathlib import Path

OCTAL = re.compile(rb"\\([0-7]{3})")


def mount_points() -> set[str]:
    """Paths at which this process sees a disk, a folder or a file mounted (proc(5))."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return set()
    paths = (OCTAL.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4]) for line in lines)
    return set(map(os.fsdecode, paths))


def mount_point(path: Path) -> str:
    """Where that is mounted in which `path` lies."""
    real, mounted = path.resolve(), mount_points()
    return next((str(each) for each in (real, *real.parents) if str(each) in mounted), "/")
