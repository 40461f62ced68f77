"""What a model's accuracy rests on: its scores with one part of the input taken away.

Pairs are told apart by their responses, so these stay; with the responses removed as well every pair is a tie, and the
accuracy is 0.5 by construction.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from beholder_training.branch import Branch
from beholder_training.data import Record


@dataclass(frozen=True, slots=True)
class Ablation:
    """`change` gives the branch and records to score instead, or None where there is nothing to take away."""

    title: str
    change: Callable[[Branch, Sequence[Record]], tuple[Branch, Sequence[Record]] | None]


def without_images(branch: Branch, records: Sequence[Record]) -> tuple[Branch, Sequence[Record]] | None:
    """The same weights read the conversation without its images: question and response alone."""
    if not _pictured(branch, records):
        return None
    return replace(branch, sees_images=False), records


def with_other_images(branch: Branch, records: Sequence[Record]) -> tuple[Branch, Sequence[Record]] | None:
    """Every record with images gets those of the next that shows as many others (the last ones those of the first),
    or, where none shows as many, of the next that shows others."""
    if not _pictured(branch, records) or len({record.images for record in records if record.images}) < 2:
        return None
    swapped = list(records)
    for number, record in enumerate(records):
        if record.images:
            images = _next_images(records, number)
            swapped[number] = replace(record, images=images, where=f"{record.where} with other images")
    return branch, swapped


def _next_images(records: Sequence[Record], number: int) -> tuple[Path, ...]:
    own = records[number].images

    def others() -> Iterator[tuple[Path, ...]]:
        following = (records[(number + step) % len(records)].images for step in range(1, len(records)))
        return (images for images in following if images and images != own)

    return next((images for images in others() if len(images) == len(own)), None) or next(others())


def without_question(branch: Branch, records: Sequence[Record]) -> tuple[Branch, Sequence[Record]] | None:
    """The prompt's text is empty: images and response alone, the image-only baseline."""
    return branch, [replace(record, prompt="", where=f"{record.where} without prompt") for record in records]


ABLATIONS: dict[str, Ablation] = {
    "without_images": Ablation("same model, images left out", without_images),
    "with_other_images": Ablation("same model, another record's images", with_other_images),
    "without_question": Ablation("same model, question left out (image and response)", without_question),
}


def _pictured(branch: Branch, records: Sequence[Record]) -> bool:
    return branch.input == "image" and any(record.images for record in records)
