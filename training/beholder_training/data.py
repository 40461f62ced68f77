"""Preference files -> one record type.

.jsonl, .json and .parquet in any of the known layouts (beholder.records), free to mix in one file. Everything but the
pixels is checked when a file is read; checking.py decodes the pictures too.
"""

import errno
import hashlib
import random
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beholder.errors import DataError
from beholder.records.layouts import Fields, parse_fields
from beholder.records.problems import BadRecord, Problem
from beholder.records.sources import read_rows
from beholder_training.embedded import default_image_cache, store_image

_SHOWN = 40  # characters of an image field that is no path


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt with its images, responses and their qualities (higher is better, equal is a tie).

    `where` is file:line, for errors.
    """

    id: str
    prompt: str
    images: tuple[Path, ...]
    responses: tuple[str, ...]
    qualities: tuple[float, ...]
    where: str

    def pairs(self) -> list[tuple[int, int]]:
        """(chosen, rejected) indices of all responses of different quality."""
        count = range(len(self.responses))
        return [(a, b) for a in count for b in count if self.qualities[a] > self.qualities[b]]


@dataclass(frozen=True, slots=True)
class ImagePlaces:
    """Where images are found: paths under `root`, by default the data file's folder; embedded ones go to `cache`."""

    root: Path | None = None
    cache: Path | None = None


BESIDE = ImagePlaces()


def read_records(
    files: Sequence[Path], image_root: Path | None = None, image_cache: Path | None = None
) -> list[Record]:
    """All records of `files`. Raises DataError at the first that cannot be used."""
    records = []
    for record, problems in scan(files, ImagePlaces(image_root, image_cache)):
        if record is None:
            raise DataError(f"{problems[0].where}: {problems[0].message}")
        records.append(record)
    if not records:
        raise DataError(f"{', '.join(map(str, files))}: no records")
    return records


def scan(files: Sequence[Path], places: ImagePlaces = BESIDE) -> Iterator[tuple[Record | None, list[Problem]]]:
    """Every row of `files` once: the record, if it can be used, and what is wrong with it."""
    for file in files:
        for row in read_rows(file):
            try:
                if isinstance(row.value, BadRecord):
                    raise row.value
                yield _record(row.value, file.parent, places, row.where)
            except BadRecord as bad:
                yield None, [bad.problem]


def require_files(files: Sequence[Path]) -> None:
    """Raises DataError for the first that cannot be opened."""
    for file in files:
        try:
            file.open("rb").close()
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}") from None


def with_pairs(records: Sequence[Record]) -> list[Record]:
    """The records that have a preference. Raises DataError when none has."""
    usable = [record for record in records if record.pairs()]
    if not usable:
        raise DataError(f"none of the {len(records)} records has two responses of different quality")
    return usable


def repeat_by_weight(records: Sequence[Record], weight: float, seed: int) -> list[Record]:
    """`records` as often as `weight` says in one epoch: whole copies, and a random part for the fraction."""
    whole = int(weight)
    part = round((weight - whole) * len(records))
    return [*records] * whole + random.Random(seed).sample([*records], part)


def fingerprint(files: Sequence[Path]) -> str:
    """sha256 over the data files' contents, in order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _record(raw: Any, folder: Path, places: ImagePlaces, where: str) -> tuple[Record, list[Problem]]:
    fields = parse_fields(raw, where)
    responses, qualities, problems = _rated(fields, where)
    images = tuple(_image_path(image, folder, places, where) for image in fields.images)
    return Record(fields.id or where, fields.prompt, images, responses, qualities, where), problems


def _rated(fields: Fields, where: str) -> tuple[tuple[str, ...], tuple[float, ...], list[Problem]]:
    """Responses whose mean rating is a number, and their ratings; the others are left out, as VLFeedback's users do."""
    rated = [
        (response, quality)
        for response, quality in zip(fields.responses, fields.qualities, strict=True)
        if quality is not None
    ]
    for number, (response, _) in enumerate(rated):
        if not response.strip():
            raise BadRecord(where, "empty-response", f"response {number} is empty")
    unrated = [number for number, quality in enumerate(fields.qualities) if quality is None]
    problems = [
        Problem(where, "non-numeric-rating", f"response {number} has no numeric rating", False) for number in unrated
    ]
    return tuple(response for response, _ in rated), tuple(quality for _, quality in rated), problems


def _image_path(image: str | bytes, folder: Path, places: ImagePlaces, where: str) -> Path:
    if isinstance(image, bytes):
        return store_image(image, places.cache or default_image_cache())
    if image.startswith("data:"):
        raise _no_path(image, where)
    path = (places.root or folder) / image
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_file = False
    except ValueError:
        raise _no_path(image, where) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _no_path(image, where) from None
        raise BadRecord(where, "missing-image", f"image {path}: {error.strerror}") from None
    if not is_file:
        raise BadRecord(where, "missing-image", f"image {path} does not exist")
    return path


def _no_path(image: str, where: str) -> BadRecord:
    """A data URL, base64, or a text that no file system takes for a path."""
    shown = image if len(image) <= _SHOWN else f"{image[:_SHOWN]}..."
    remedy = "write the picture to a file and give its path, or its bytes in parquet"
    return BadRecord(where, "bad-image-field", f"image {shown!r} ({len(image)} characters) is no path: {remedy}")
