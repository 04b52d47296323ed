"""`batch-route`, as a program."""

from batch.errors import signals_exit

signals_exit()  # first: a signal while the rest loads ends in its exit code too, not in a traceback

from batch.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
