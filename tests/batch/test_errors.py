"""Messages as a user sees them: one line of a bounded length, at once, whatever was put into them."""

import time

import pytest

from batch.errors import LONG, InputError, one_line, without_credentials


@pytest.mark.parametrize(
    "value",
    ["a1" * 100_000, "a:" * 100_000, "://" * 70_000, "s3://" * 40_000, "x@" * 100_000, "?=" * 100_000],
)
def test_a_long_value_neither_hangs_the_message_nor_fills_the_screen(value: str) -> None:
    """A digest or a blob in the wrong column: 200,000 characters took minutes."""
    began = time.process_time()
    said = str(InputError(f"label {value!r} is not one of a, b; correct it"))
    assert time.process_time() - began < 5  # a hundredth of a second; it was minutes
    assert said.startswith("label '") and said.endswith("; correct it") and len(said) < LONG + 10


def test_a_short_one_is_said_in_full() -> None:
    text = "x" * LONG
    assert str(InputError(text)) == text
    assert one_line("a\nb\x1b[0m") == "a b\\x1b[0m"
    hidden = "\U000e0053\U000e0101\u202e\ud800"  # a tag, a selector, an override and half a pair
    assert one_line(f"a{hidden}b") == r"a\U000e0053\U000e0101\u202e\ud800b"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("1https://key:secret@host/a", "1https://host/a"),
        (f"{'z' * 40}+s3://key:secret@bucket/a", f"{'z' * 40}+s3://bucket/a"),
        (f"s3://key:{'s' * LONG}@bucket/a", "…"),
    ],
)
def test_no_credentials_are_said(uri: str, said: str) -> None:
    assert without_credentials(f"at {uri} now") == f"at {said} now"
