"""benchmarks/RESULTS.md says what the JSON files say."""

from benchmarks.results_page import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python -m benchmarks.results_page`"
