"""Progress: phases with their times, elapsed and remaining by name, one line of 80 columns on a terminal."""

import io
import time

import pytest
from rich.console import Console

from batch.reporting import progress
from batch.reporting.progress import ProgressLine, clock
from batch.scoring.router import Counts


def test_a_log_has_a_line_for_each_phase_and_nothing_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    stream = io.StringIO()
    with ProgressLine(Console(file=stream, width=80)) as line:
        assert stream.getvalue() == ""  # the input may be refused yet
        line.phase("loading the model")
        line.phase("routing")
        time.sleep(0.02)
        line(Counts(rows=120, errors=2), 500)
    begun, took, routing, rows, ended = stream.getvalue().splitlines()
    assert begun == "loading the model" and took.startswith("loading the model: 0.") and routing == "routing"
    assert rows.startswith("120 of 500 rows, ") and ", 2 errors, elapsed 0:00, remaining 0:00" in rows
    assert ended.startswith("routing: 0.")


def test_a_terminal_shows_the_phase_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, legacy_windows=False)
    with ProgressLine(console) as line:
        line.phase("routing")
        for rows in (1_000_000, 12_345_678):  # what remains is known from the second on
            time.sleep(0.02)
            line(Counts(rows=rows), 50_000_000)
        line._bar.refresh()
        shown = stream.getvalue()
    assert "12345678/50000000" in shown and "elapsed 0:00" in shown and "remaining" in shown
    assert "starting the engine" not in shown


def test_a_run_that_fails_does_not_say_how_long_it_took_to_fail() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), ProgressLine(Console(file=stream, width=80)) as line:
        line.phase("loading the model")
        raise KeyError
    assert stream.getvalue() == "loading the model\n"


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.6, 3599, 3600, 90_061)] == [
        "0:00", "1:00", "59:59", "1:00:00", "25:01:01"
    ]  # fmt: skip
