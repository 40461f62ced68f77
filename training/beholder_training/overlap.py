"""What held-out records share with training records: an accuracy over those says nothing of new ones. Pure.

Images are the same where their files are, so a copy under another name is not found; embedded images are, since these
are kept by their sha256.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from beholder_training.data import Record


@dataclass(frozen=True, slots=True)
class Overlap:
    """Of `held_out` records, those with the prompt and images of a training record, and those with an image of one
    but another prompt or other images beside it."""

    held_out: int
    same_question: int
    same_image: int

    def __bool__(self) -> bool:
        return bool(self.same_question or self.same_image)

    def __str__(self) -> str:
        return (
            f"of {self.held_out} held-out records {self.same_question} have the prompt and images of a training record "
            f"and {self.same_image} more an image of one: held-out accuracy and calibration may flatter the model"
        )


def overlap(training: Sequence[Record], held_out: Sequence[Record]) -> Overlap:
    """What `held_out` shares with `training`."""
    real = cache(os.path.realpath)  # records share pictures
    shown = {record.images: tuple(map(real, record.images)) for record in (*training, *held_out)}
    questions = {(record.prompt, shown[record.images]) for record in training}
    pictures = {picture for record in training for picture in shown[record.images]}
    same = [(record.prompt, shown[record.images]) in questions for record in held_out]
    pictured = [not pictures.isdisjoint(shown[record.images]) for record in held_out]
    more = sum(picture and not question for picture, question in zip(pictured, same, strict=True))
    return Overlap(len(held_out), sum(same), more)
