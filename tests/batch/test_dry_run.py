"""`--dry-run`: a time as one would say it."""

import pytest

from batch.dry_run import _duration


@pytest.mark.parametrize(
    ("rows", "rate", "said"),
    [
        (500, 500, "1 s"),
        (1, 500, "1 s"),
        (0, 500, "0 s"),
        (500, 10, "50 s"),
        (6000, 10, "10 min"),
        (2_000_000, 50, "11.1 h"),
    ],
)
def test_durations(rows: int, rate: float, said: str) -> None:
    assert _duration(rows, rate) == said
