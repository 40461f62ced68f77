"""Prompts with pictures and responses, made in code: golden samples of an adopted model, and the spread of its rewards.

Generic on purpose: nothing is known of what the model was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt, its picture if any, and responses of mixed quality, the best first."""

    prompt: str
    images: Sequence[Path]
    responses: Sequence[str]


_SHAPES: Final = (("red", "circle", (224, 168)), ("blue", "square", (168, 224)), ("green", "triangle", (200, 200)),
                  ("orange", "circle", (256, 128)))  # fmt: skip
_TEXTS: Final = (
    ("What is the capital of France?", ("The capital of France is Paris.", "Lyon.", "France is a country in Europe.")),
    (
        "Write one sentence about the sea.",
        ("The sea is calm this morning, and the gulls follow the boats home.", "sea sea sea", "I will not."),
    ),
    ("What is 17 + 25?", ("17 + 25 = 42.", "It is 43, I am quite sure.", "Numbers are fun!")),
    (
        "How do I boil an egg?",
        ("Put it in boiling water for eight minutes, then cool it in cold water.", "Fry it.", "An egg is an egg."),
    ),
)


def text_samples() -> list[Sample]:
    return [Sample(prompt, (), responses) for prompt, responses in _TEXTS]


def pictured_samples(folder: Path) -> list[Sample]:
    """Samples whose pictures are drawn into `folder`, one in each of _SHAPES."""
    samples = []
    for number, (colour, shape, size) in enumerate(_SHAPES):
        path = folder / f"{number}.png"
        draw(colour, shape, size).save(path)
        responses = (
            f"The picture shows a {colour} {shape} on a light background.",
            f"It is a {shape}.",
            "There is a dog on a beach, and it is raining.",
            "I cannot see any picture.",
        )
        samples.append(Sample("Describe the picture.", (path,), responses))
    return samples


def draw(colour: str, shape: str, size: tuple[int, int]) -> Image.Image:
    """One shape in the middle of a light picture."""
    image = Image.new("RGB", size, "whitesmoke")
    pen = ImageDraw.Draw(image)
    (width, height), radius = size, min(size) // 3
    left, top, right, bottom = width // 2 - radius, height // 2 - radius, width // 2 + radius, height // 2 + radius
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=colour)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=colour)
    else:
        pen.polygon([(left, bottom), (right, bottom), (width // 2, top)], fill=colour)
    return image
