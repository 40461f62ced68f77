"""One line of an exception's message, whatever the message is."""

import pytest

from beholder.error_lines import first_line, last_line


@pytest.mark.parametrize(
    ("message", "first", "last"),
    [
        ("one", "one", "one"),
        ("\n  what is wrong\nand where\nhow to go on\n\n", "what is wrong", "how to go on"),
        ("", "ValueError", "ValueError"),
        (" \n ", "ValueError", "ValueError"),
    ],
)
def test_one_line(message: str, first: str, last: str) -> None:
    assert (first_line(ValueError(message)), last_line(ValueError(message))) == (first, last)
