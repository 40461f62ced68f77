"""Image bytes -> verified RGB pixels and the sha256 of the bytes.

Training and serving both decode here, so a picture has the same pixels on both sides: EXIF rotation applied, alpha
laid over white, 16-bit greyscale scaled to 8 bits, everything converted to RGB, of an animation the first frame.
Limits are checked on the header, before any pixel is decoded. Pillow's own limit holds too: a program that accepts
more than it (89 million pixels; it refuses above twice that) calls `raise_pillows_limit`, as the service does.
"""

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from beholder.errors import BeholderError, ImageError, ImageNotFound, ImageTooLarge
from beholder.images.structure import is_fragmented, is_whole, scans

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_BLANK_SIDE = 224  # pixels of the white square that the published code's proxy sees
_STRIPE_PIXELS = 2**20
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is refused before decoding. `max_aspect` is the longer side over the shorter one, `max_scans` of a JPEG."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_aspect: float = 190.0
    max_frames: int = 1000
    max_scans: int = 100


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """`pixels` is in mode RGB; `sha256` is the hex digest of the bytes that it was decoded from."""

    pixels: Image.Image
    sha256: str


@cache
def blank_image() -> LoadedImage:
    """The white square that stands for every image of a model that was trained on blank ones."""
    pixels = Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE), (255, 255, 255))
    return LoadedImage(pixels, hashlib.sha256(pixels.tobytes()).hexdigest())


def decode_base64(text: str, limits: ImageLimits = ImageLimits()) -> bytes:
    """The bytes of a data URL or of plain base64. Raises ImageError, ImageTooLarge."""
    payload = text[match.end() :] if (match := _DATA_URL.match(text)) else text
    if len(payload) * 3 // 4 > limits.max_bytes + 2:
        raise ImageTooLarge(f"the image is larger than {limits.max_bytes} bytes: send a smaller one")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"the image is neither a data URL nor base64 ({error}): send data:image/png;base64,..."
        ) from None


def load_image(
    data: bytes, limits: ImageLimits = ImageLimits(), admit: Callable[[int], None] = lambda pixels: None
) -> LoadedImage:
    """Decode `data`. Raises ImageError for anything but a whole PNG, JPEG, WebP or GIF (its first frame).

    `admit` is called with the number of pixels before they are decoded, and may raise.
    """
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"the image has {len(data)} bytes, at most {limits.max_bytes} are accepted")
    if is_fragmented(data):
        raise ImageTooLarge(f"the image of {len(data)} bytes is of far more parts than its format needs: save it again")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, limits)
            _check_frames(image, limits)
            _check_scans(data, limits)
            if not is_whole(data):
                raise ImageError(f"the image of {len(data)} bytes breaks off: send the whole file")
            admit(image.width * image.height)
            pixels = _to_rgb(image)
    except BeholderError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(_pillows_refusal(error, limits)) from None
    except UnidentifiedImageError:
        raise ImageError(f"the {len(data)} bytes are not a {', '.join(FORMATS)} image") from None
    except Exception as error:
        # Pillow's decoders raise many types on hostile bytes (OSError, SyntaxError, struct.error, ...).
        raise ImageError(f"the image cannot be decoded: {error}") from None
    return LoadedImage(pixels, hashlib.sha256(data).hexdigest())


def raise_pillows_limit(limits: ImageLimits) -> None:
    """Let Pillow open what `limits` accept. Its own limit is one for the whole process: this is for programs."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.max_pixels)


def load_image_file(path: Path, limits: ImageLimits = ImageLimits()) -> LoadedImage:
    """`load_image` of a file; errors name the path."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageNotFound(f"image {path}: {error.strerror}") from None
    try:
        return load_image(data, limits)
    except ImageError as error:
        raise type(error)(f"image {path}: {error}") from None


def _check_frames(image: Image.Image, limits: ImageLimits) -> None:
    """Pillow counts frames without decoding them."""
    frames = getattr(image, "n_frames", 1)
    if frames > limits.max_frames:
        raise ImageTooLarge(f"the image has {frames} frames, at most {limits.max_frames} are accepted")
    image.seek(0)


def _check_scans(data: bytes, limits: ImageLimits) -> None:
    """A progressive JPEG has some ten; each takes the decoder as long as the picture, and a hostile file 75 bytes."""
    if (found := scans(data)) > limits.max_scans:
        raise ImageTooLarge(f"the image has {found} scans, at most {limits.max_scans} are accepted: save it again")


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(f"the image is {width} x {height}, at most {limits.max_pixels} pixels are accepted")
    if max(size) > limits.max_aspect * min(size):
        raise ImageError(f"the image is {width} x {height}, an aspect ratio above {limits.max_aspect:g}: crop it")


def _pillows_refusal(error: Exception, limits: ImageLimits) -> str:
    """What Pillow refuses when it opens a file, before `_check_size` can, in words of the limit that decided."""
    if Image.MAX_IMAGE_PIXELS is not None and limits.max_pixels > Image.MAX_IMAGE_PIXELS:
        return f"Pillow's own limit of pixels refuses the image, set PIL.Image.MAX_IMAGE_PIXELS higher: {error}"
    return f"the image has more than the {limits.max_pixels} pixels that are accepted"


def _to_rgb(image: Image.Image) -> Image.Image:
    """In stripes, since Pillow lets no other thread run while it converts: the event loop would stand still."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # or it copies what is upright already
    pixels = Image.new("RGB", image.size, None)
    height = max(1, _STRIPE_PIXELS // image.width)
    for top in range(0, image.height, height):
        box = (0, top, image.width, min(top + height, image.height))
        pixels.paste(_stripe_to_rgb(image.crop(box)), box)
    return pixels


def _stripe_to_rgb(stripe: Image.Image) -> Image.Image:
    if stripe.mode in _SIXTEEN_BIT:
        stripe = _to_eight_bits(stripe)
    if stripe.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in stripe.info:
        rgba = stripe.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        stripe = Image.alpha_composite(white, rgba)
    return stripe.convert("RGB")


def _to_eight_bits(deep: Image.Image) -> Image.Image:
    """Grey in mode L, or LA where the file has a transparent value: one of 16 bits, which scaled pixels do not tell."""
    grey = deep.point(lambda value: value / 256).convert("L")
    key = grey.info.pop("transparency", None)
    if key is None:
        return grey
    alpha = deep.convert("I").point([255 * (value != key) for value in range(2**16)], "L")
    return Image.merge("LA", (grey, alpha))
