"""JSONL preference data -> one record type.

Three formats, told apart by their keys and free to mix in one file:

    completions (VLFeedback): {"id", "prompt", "img_path",
                               "completions": {"annotations": [{aspect: {"Rating"}}], "response": [..]}}
    pairs (POVID, RLHF-V):    {"id", "prompt", "img_path", "chosen", "rejected"}
    to score:                 {"prompt", "img_path", "responses": [..]}, optionally "best"

Everything but the pixels is checked when a file is read; an unusable line raises DataError with file and line.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beholder.errors import DataError


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


def read_records(files: Sequence[Path], image_root: Path | None = None) -> list[Record]:
    """All records of `files`. Image paths are relative to `image_root`, by default to the file's own folder."""
    records = [record for file in files for record in _read_file(file, image_root or file.parent)]
    if not records:
        raise DataError(f"{', '.join(map(str, files))}: no records")
    return records


def with_pairs(records: Sequence[Record]) -> list[Record]:
    """The records that have a preference. Raises DataError when none has."""
    usable = [record for record in records if record.pairs()]
    if not usable:
        raise DataError(f"none of the {len(records)} records has two responses of different quality")
    return usable


def fingerprint(files: Sequence[Path]) -> str:
    """sha256 over the data files' contents, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def parse_record(raw: Any, image_root: Path, where: str) -> Record:
    """One decoded JSON line. Raises DataError."""
    if not isinstance(raw, dict):
        raise DataError(f"{where}: a record must be a JSON object, not {type(raw).__name__}")
    if "completions" in raw:
        responses, qualities = _completions(raw["completions"], where)
    elif "chosen" in raw or "rejected" in raw:
        responses, qualities = [_text(raw, "chosen", where), _text(raw, "rejected", where)], [1.0, 0.0]
    elif "responses" in raw:
        responses, qualities = _to_score(raw, where)
    else:
        raise DataError(f"{where}: needs 'completions', or 'chosen' and 'rejected', or 'responses'")
    for number, response in enumerate(responses):
        if not isinstance(response, str) or not response.strip():
            raise DataError(f"{where}: response {number} is empty")
    images = _images(raw, image_root, where)
    return Record(
        str(raw.get("id", where)), _text(raw, "prompt", where), images, tuple(responses), tuple(qualities), where
    )


def _read_file(file: Path, image_root: Path) -> Iterator[Record]:
    try:
        with file.open() as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield parse_record(_decode(line, f"{file}:{number}"), image_root, f"{file}:{number}")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason})") from None


def _decode(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from None


def _text(raw: dict[str, Any], key: str, where: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key!r} is missing or empty")
    return value


def _images(raw: dict[str, Any], image_root: Path, where: str) -> tuple[Path, ...]:
    value = raw.get("img_path") or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: 'img_path' must be a path or a list of paths")
    paths = tuple(image_root / name for name in names)
    for path in paths:
        if not path.is_file():
            raise DataError(f"{where}: image {path} does not exist")
    return paths


def _completions(raw: Any, where: str) -> tuple[list[Any], list[float]]:
    """Responses whose mean rating is a number; others are left out, as VLFeedback's users do."""
    try:
        rated = list(zip(raw["response"], raw["annotations"], strict=True))
    except (TypeError, KeyError, ValueError):
        raise DataError(f"{where}: 'completions' needs 'response' and 'annotations', lists of one length") from None
    scored = [(response, _mean_rating(annotations)) for response, annotations in rated]
    numeric = [(response, quality) for response, quality in scored if quality is not None]
    return [response for response, _ in numeric], [quality for _, quality in numeric]


def _mean_rating(annotations: Any) -> float | None:
    try:
        ratings = [float(aspect["Rating"]) for aspect in annotations.values()]
    except (AttributeError, TypeError, KeyError, ValueError):
        return None
    mean = sum(ratings) / len(ratings) if ratings else math.nan
    return mean if math.isfinite(mean) else None


def _to_score(raw: dict[str, Any], where: str) -> tuple[list[Any], list[float]]:
    responses = raw["responses"]
    if not isinstance(responses, list) or not responses:
        raise DataError(f"{where}: 'responses' must be a list of texts")
    best = raw.get("best")
    if best is None:
        return responses, [0.0] * len(responses)
    if not isinstance(best, int) or not 0 <= best < len(responses):
        raise DataError(f"{where}: 'best' must be an index into 'responses'")
    return responses, [float(index == best) for index in range(len(responses))]
