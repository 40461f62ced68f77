"""Every record of a data set, read, decoded and measured once, with what is wrong by line.

Used by `beholder-train check-data` and at the start of training and of evaluating, so that a run never meets a bad
record half-way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from beholder.errors import (
    BeholderError,
    DataError,
    ImageError,
    ImageNotFound,
    ImageTooLarge,
    InvalidText,
    PromptTooLong,
    TemplateMismatch,
)
from beholder.images import load_image_file
from beholder.records.problems import Problem, counts
from beholder.records.sources import count_rows
from beholder_training.data import BESIDE, ImagePlaces, Record, scan

NO_PREFERENCE = "ties-only"  # the kind of problem of records that are well, but have no pair
Examine = Callable[[Record], object]  # raises a BeholderError when the record cannot be used
_KINDS: tuple[tuple[type[BeholderError], str], ...] = (
    (PromptTooLong, "too-long"),
    (ImageTooLarge, "too-large-image"),
    (ImageNotFound, "missing-image"),
    (ImageError, "unreadable-image"),
    (InvalidText, "invalid-text"),
    (TemplateMismatch, "rewritten-text"),
)


@dataclass(slots=True)
class Checked:
    """`read` rows gave `records`, which have a pair each; `problems` in the order of the files."""

    read: int = 0
    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        pairs = sum(len(record.pairs()) for record in self.records)
        found = f"; problems: {counts(self.problems)}" if self.problems else "; no problems"
        with_images = sum(bool(record.images) for record in self.records)
        usable = f"{len(self.records)} usable ({with_images} with images) with {pairs} pairs"
        return f"{self.read} records read, {usable}{found}"

    def require_good(self) -> None:
        """Raises DataError that names the first problem and counts the others, when there is any."""
        if self.problems:
            raise DataError(
                f"{self.problems[0]} ({counts(self.problems)} in all: list them with `beholder-train check-data`, "
                "or train on the rest with bad_records=skip)"
            )


class PictureCheck:
    """Decodes every image once, however many records show it."""

    def __init__(self) -> None:
        self._seen: dict[Path, BeholderError | None] = {}

    def __call__(self, record: Record) -> None:
        """Raises ImageError."""
        for path in record.images:
            if path not in self._seen:
                self._seen[path] = _decode(path)
            if (error := self._seen[path]) is not None:
                raise error


def check_files(
    files: Sequence[Path], places: ImagePlaces = BESIDE, examine: Sequence[Examine] = (), progress: bool = True
) -> Checked:
    """Read `files` once. `examine` sees every record that reads well: PictureCheck, or a branch's `encode`."""
    checked = Checked()
    rows = [count_rows(file) for file in files]
    total = sum(filter(None, rows)) if None not in rows else None
    for record, problems in tqdm(scan(files, places), "checking data", total, unit="record", disable=not progress):
        checked.read += 1
        checked.problems += problems
        if record is None:
            continue
        usable, found = examine_record(record, examine)
        checked.problems += found
        if usable is not None:
            checked.records.append(usable)
    return checked


def examine_record(record: Record, examine: Sequence[Examine]) -> tuple[Record | None, list[Problem]]:
    """The record as training may use it (None: not at all), and what is wrong with it."""
    record, problems = _without_duplicates(record)
    if not record.pairs():
        left = f"{len(record.responses)} different responses" if problems else "no two responses of different quality"
        return None, [*problems, Problem(record.where, NO_PREFERENCE, left)]
    for check in examine:
        try:
            check(record)
        except Exception as error:
            # Processors and tokenizers raise what they like on hostile input; whatever it is, it is this record's.
            kind = next((kind for kinds, kind in _KINDS if isinstance(error, kinds)), "unexpected")
            return None, [*problems, Problem(record.where, kind, str(error) or type(error).__name__)]
    return record, problems


def _without_duplicates(record: Record) -> tuple[Record, list[Problem]]:
    """The first of equal responses alone: a pair of equal texts teaches nothing, whatever its label."""
    first: dict[str, int] = {}
    problems = []
    for number, response in enumerate(record.responses):
        if response in first:
            message = f"response {number} is the same text as response {first[response]}"
            problems.append(Problem(record.where, "duplicate-response", message, fatal=False))
        else:
            first[response] = number
    if not problems:
        return record, problems
    kept = list(first.values())
    qualities = tuple(record.qualities[number] for number in kept)
    return replace(record, responses=tuple(first), qualities=qualities), problems


def _decode(path: Path) -> BeholderError | None:
    try:
        load_image_file(path)
    except BeholderError as error:
        return error
    return None
