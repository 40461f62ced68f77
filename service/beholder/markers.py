"""<image:sha256:HEX> inside a string: the place of an image that was sent before.

For trainers that send text alone. Only the prompts of the compatibility routes are read for markers, and of those only
the user's turns: what a policy wrote never adds an image.

In a prompt that the policy's template rendered, a placeholder is the place of a picture that the policy saw. Scored as
characters, the response would be judged without the picture, so such a prompt is refused. A marker that was put in a
placeholder's stead may have kept the tokens around it: they are the template's, and the reward model's has its own.
"""

import re
from collections.abc import Collection
from typing import Final

from beholder.errors import ImageMismatch, TooManyImages
from beholder.images.sources import ImageSource, Stored
from beholder.policy_template import Texts
from beholder.prompts import IMAGE, Conversation, ImageSlot, Turn

MARKER: Final = re.compile(r"<image:sha256:([0-9a-f]{64})>")
FRAMES: Final = {
    "<|vision_start|>": "<|vision_end|>",
    "<img>": "</img>",
    "<start_of_image>": "<end_of_image>",
    "<|image_start|>": "<|image_end|>",
    "<|begin_of_image|>": "<|end_of_image|>",
    "<|image>": "<image|>",
}
"""What templates put before and after an image's placeholder."""
PLACEHOLDERS: Final = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<start_of_image>",
    "<image_soft_token>",
    "<IMG_CONTEXT>",
    "<|image|>",
)
"""What templates write for an image or a video. `<image>` is none: it is a tag of SVG, and so may be text."""
_FRAMED: Final = re.compile(
    "|".join(f"{re.escape(begin)}({MARKER.pattern}){re.escape(end)}" for begin, end in FRAMES.items())
)
_PIXTRAL: Final = re.compile(r"\[IMG\](?![^\[]*\[/IMG\])")
"""Without `[/IMG]` after it: with that it is a forum's link to a picture, which is text."""


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


def conversation(
    texts: Texts, max_images: int, places: Collection[str] = ()
) -> tuple[Conversation, tuple[ImageSource, ...]]:
    """Turns of a templated string to turns with images. `places` are what its template, and others in question, write
    for an image. Raises ImageMismatch where there is one without an image, TooManyImages where a turn has more."""
    turns: list[Turn] = []
    sources: list[ImageSource] = []
    for role, text in texts:
        if role == "user":
            text = _FRAMED.sub(_bare, text)
            _refuse_placeholders(text, places)
            parts, images = split(text, max_images)
            turns.append(Turn(role, parts))
            sources += images
        else:
            turns.append(Turn(role, (text,)))
    return tuple(turns), tuple(sources)


def _bare(framed: re.Match[str]) -> str:
    return next(marker for marker in framed.groups() if marker)


def _refuse_placeholders(text: str, places: Collection[str]) -> None:
    found = [place for place in (*PLACEHOLDERS, *places) if place in text] or _PIXTRAL.findall(text)
    if found:
        raise ImageMismatch(
            f"a turn of the user has {found[0]!r}, the place of an image that was not given: send the image ahead"
            " (PUT /images/{sha256}) and put its marker <image:sha256:HEX> there, see docs/http.md"
        )
