"""`batch-route`, as a program."""

import os

from batch.errors import signals_exit
from batch.streams import outlive_terminal

signals_exit()  # first: a signal while the rest loads ends in its exit code too, not in a traceback
outlive_terminal()
# The one of Arrow's allocators that gives memory back: large texts take a quarter less at their peak. It is
# read when pyarrow is imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
# numpy's OpenBLAS, which is not needed here, would send this process a SIGINT where it may start no thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from batch.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
