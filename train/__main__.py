"""`batch-train`, as a program."""

from batch.errors import signals_exit
from batch.streams import outlive_terminal

signals_exit()  # first: a signal while the rest loads ends in its exit code too, not in a traceback
outlive_terminal()

from train.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
