"""`batch-route`, as a program."""

import os

from batch.errors import signals_exit

signals_exit()  # first: a signal while the rest loads ends in its exit code too, not in a traceback
# The one of Arrow's allocators that gives memory back: large texts take a quarter less at their peak. It is
# read when pyarrow is imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")

from batch.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
