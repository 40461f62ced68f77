"""Small pictures for tests."""

import io
from typing import Any

from PIL import Image


def png(width: int = 64, height: int = 64, colour: tuple[int, ...] = (200, 30, 30), mode: str = "RGB") -> bytes:
    """A two-coloured PNG: half `colour`, half its complement, so that a flip or a crop changes it."""
    image = Image.new(mode, (width, height), colour)
    complement = tuple(255 - value for value in colour[:3]) + colour[3:]
    image.paste(complement, (0, 0, width // 2, height))
    return encode(image, "PNG")


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
