"""<image:sha256:HEX> inside a string: the place of an image that was sent before.

For trainers that send text alone. Only the prompts of the compatibility routes are read for markers, and of those only
the user's turns: what a policy wrote never adds an image.
"""

import re
from typing import Final

from beholder.errors import TooManyImages
from beholder.image_sources import ImageSource, Stored
from beholder.policy_template import Texts
from beholder.prompts import IMAGE, Conversation, ImageSlot, Turn

MARKER: Final = re.compile(r"<image:sha256:([0-9a-f]{64})>")


def split(text: str, max_images: int) -> tuple[tuple[str | ImageSlot, ...], tuple[ImageSource, ...]]:
    """The text with a slot for each marker, and the images of the slots. Raises TooManyImages."""
    pieces = MARKER.split(text, max_images + 1)
    if len(pieces) // 2 > max_images:
        raise TooManyImages(f"a text has more than the {max_images} images that are accepted")
    parts: list[str | ImageSlot] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            parts.append(IMAGE)
        elif piece:
            parts.append(piece)
    return tuple(parts) or ("",), tuple(map(Stored, pieces[1::2]))


def conversation(texts: Texts, max_images: int) -> tuple[Conversation, tuple[ImageSource, ...]]:
    """Turns of text to turns with images. Raises TooManyImages where one has more."""
    turns: list[Turn] = []
    sources: list[ImageSource] = []
    for role, text in texts:
        if role == "user":
            parts, images = split(text, max_images)
            turns.append(Turn(role, parts))
            sources += images
        else:
            turns.append(Turn(role, (text,)))
    return tuple(turns), tuple(sources)
