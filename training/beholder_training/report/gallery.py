"""Pairs on which two models disagree, the clearest first, half of them won by each where there are enough."""

import io
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from beholder.errors import ImageError
from beholder.images import load_image_file
from beholder_training.data import Record
from beholder_training.evaluation.statistics import Values
from beholder_training.evaluation.suite import Evaluation
from beholder_training.report.page import Exhibit, data_url

SHOWN = 12
SIDE = 256  # pixels of a thumbnail
MAX_TEXT = 400  # characters


def disagreements(evaluation: Evaluation, first: str, second: str, shown: int = SHOWN) -> list[Exhibit]:
    """Exhibits over all test sets, by the difference of the two models' margins."""
    found: list[tuple[float, bool, Exhibit]] = []
    for test in evaluation.tests:
        ours, theirs = (evaluation.result(name, test.name).values for name in (first, second))
        pairs = [(record, pair) for record in test.records for pair in record.pairs()]
        for place in _clearest(ours, theirs, shown):
            record, pair = pairs[place]
            margins = [(first, float(ours[place])), (second, float(theirs[place]))]
            gap = abs(margins[0][1] - margins[1][1])
            found.append((gap, margins[0][1] > 0, _exhibit(record, pair, test.name, margins)))
    found.sort(key=lambda each: -each[0])
    sides = [[exhibit for _, won, exhibit in found if won == side] for side in (False, True)]
    alternating = [exhibit for both in zip_longest(*sides) for exhibit in both if exhibit is not None]
    return alternating[:shown]


def _clearest(ours: Values, theirs: Values, count: int) -> list[int]:
    """For each side, the `count` pairs that it alone gets right by the widest difference."""
    places: list[int] = []
    for right, wrong in ((ours, theirs), (theirs, ours)):
        differ = [place for place in range(len(ours)) if right[place] > 0 > wrong[place]]
        places += sorted(differ, key=lambda place: wrong[place] - right[place])[:count]
    return places


def _exhibit(record: Record, pair: tuple[int, int], test: str, margins: Sequence[tuple[str, float]]) -> Exhibit:
    chosen, rejected = (_short(record.responses[index]) for index in pair)
    pictures = [url for path in record.images if (url := _thumbnail(path)) is not None]
    return Exhibit(f"{test}, {record.id}", pictures, _short(record.prompt), chosen, rejected, list(margins))


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _thumbnail(path: Path) -> str | None:
    """A data URL of the picture, drawn anew; None where it can no longer be read."""
    try:
        image = load_image_file(path).pixels.copy()
    except ImageError:
        return None
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return data_url(buffer.getvalue(), "image/png")
