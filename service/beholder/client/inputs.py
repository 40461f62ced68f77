"""What a caller gives, as what is sent: an image's bytes and their sha256, a prompt's part of a request.

A file's bytes are sent as they are. A picture in memory becomes a PNG, which the service decodes to the same pixels:
nothing is ever encoded with loss. Pillow is loaded for pictures and arrays alone.
"""

import base64
import binascii
import hashlib
import io
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Union
from urllib.parse import unquote, urlsplit

from beholder.errors import ImageError, ImageNotFound, InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image


class PixelArray(Protocol):
    """A numpy array, or what looks like one; uint8 of shape (H, W), (H, W, 3) or (H, W, 4), or uint16 of (H, W)."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


ImageInput = Union[Path, str, bytes, "Image", PixelArray, Mapping[str, Any]]
"""A file (its path, its file:// URL, or itself in a data: URL), a file's bytes, a PIL picture, an array, or a row of a
Hugging Face `Image` column that is not decoded ({"bytes": .., "path": ..})."""
Prompt = str | Sequence[Mapping[str, Any]]
"""A plain prompt, whose images come first, or `messages` as POST /rank takes them."""

PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_WITH_ALPHA: Final = {"RGBa": "RGBA", "La": "LA", "PA": "RGBA"}
_SIXTEEN_BIT: Final = frozenset({"I", "I;16B", "I;16L", "I;16N"})
_LOADING: Final = [threading.Lock() for _ in range(61)]
"""Pillow decodes a file at its first use, and not for two threads at a time: a picture's lock is chosen by its id."""
_LONGEST_SHOWN: Final = 200
_ARRAYS: Final = "uint8 of shape (H, W), (H, W, 3) or (H, W, 4), or uint16 of shape (H, W)"


def _renew_locks() -> None:
    """In a forked process, in which nobody will release those that other threads of its parent held."""
    _LOADING[:] = [threading.Lock() for _ in _LOADING]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image file's bytes and their sha256, in hex."""

    data: bytes
    sha256: str
    index: int = 0
    """Its place among the images of its prompt, for errors."""

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode()


def encode_image(image: ImageInput, index: int = 0) -> EncodedImage:
    """The file that is sent for `image`. Raises ImageError, ImageNotFound, which name the file."""
    data = _file_bytes(image)
    return EncodedImage(data, hashlib.sha256(data).hexdigest(), index)


def check_sequence(name: str, value: object) -> None:
    """A lone string where several things belong would be taken for its characters. Raises InvalidRequest."""
    if isinstance(value, str | bytes | Path):
        raise InvalidRequest(f"{name} must be a list: write [{value!r:.40}]")
    if value is None:
        raise InvalidRequest(f"{name} must be a list, not None: write []")


def _file_bytes(image: Any) -> bytes:
    if isinstance(image, str):
        return _named_bytes(image)
    if isinstance(image, Path):
        return _read(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Mapping):
        return _column_bytes(image)
    if hasattr(image, "save") and hasattr(image, "mode"):  # asked for an array Pillow would decode the picture here
        return _png(_loaded(image))
    if hasattr(image, "__array_interface__"):
        return _png(_from_array(image))
    raise ImageError(f"{type(image).__name__} is not an image: give a path, bytes, a PIL image or an array")


def _column_bytes(row: Mapping[str, Any]) -> bytes:
    if isinstance(row.get("bytes"), bytes):
        return bytes(row["bytes"])
    if row.get("path"):
        return _named_bytes(str(row["path"]))
    raise ImageError(f"an image given as a map needs `bytes` or `path`, it has {', '.join(map(str, row)) or 'nothing'}")


def _named_bytes(text: str) -> bytes:
    """What a path or a URL names; a scheme is a scheme in any case of its letters."""
    scheme, _, rest = text.partition(":")
    match scheme.lower():
        case "data":
            return _from_data_url(rest)
        case "http" | "https":
            raise ImageError(
                f"an image URL (of {_host(text)}) is not fetched by the client: download it, give the file"
            )
        case "file" if rest.startswith("//"):
            return _from_file_url(rest.removeprefix("//"))
    return _read(Path(text))


def _from_file_url(path: str) -> bytes:
    """Trainers put paths behind file:// as they are; elsewhere they are quoted."""
    try:
        return _read(Path(path))
    except ImageNotFound:
        return _read(Path(unquote(path)))


def _host(url: str) -> str:
    """For messages: the rest of a URL may hold a key."""
    try:
        return urlsplit(url).hostname or "no host"
    except ValueError:
        return "no host"


def _from_data_url(rest: str) -> bytes:
    header, comma, data = rest.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ImageError("a data: URL of an image must be data:image/..;base64,..")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise ImageError("the data: URL of an image is not valid base64") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageNotFound(f"image {_shown(path)}: {reason}") from None


def _shown(path: Path) -> str:
    """What was taken for a path may be a picture as text."""
    text = str(path)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:40]!r}... ({len(text)} characters; a path is wanted)"


def _from_array(array: PixelArray) -> "Image":
    from PIL import Image

    interface = array.__array_interface__
    shape, kind = interface["shape"], interface["typestr"][1:]
    eight_bit = kind == "u1" and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4)))
    if not (eight_bit or (kind == "u2" and len(shape) == 2)) or 0 in shape:
        raise ImageError(f"an array of {interface['typestr']} and shape {shape} is not an image: give {_ARRAYS}")
    return Image.fromarray(array)


def _loaded(picture: "Image") -> "Image":
    """A copy for this thread alone; many samples may share the picture. Raises ImageError."""
    with _LOADING[id(picture) // 16 % len(_LOADING)]:
        try:
            return picture.copy()
        except Exception as error:  # decoders raise what they like on a broken file
            raise ImageError(f"the picture cannot be decoded: {error}") from None


def _png(picture: "Image") -> bytes:
    """Fast rather than small: most pictures are sent once, over a local network."""
    buffer = io.BytesIO()
    try:
        _in_png_mode(picture).save(buffer, "PNG", compress_level=1, icc_profile=None)
    except ImageError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(f"the picture cannot be written as PNG: {error}") from None
    return buffer.getvalue()


def _in_png_mode(picture: "Image") -> "Image":
    """The picture in a mode that PNG has, without loss of what the service reads from it."""
    if picture.mode in PNG_MODES:
        return picture
    if picture.mode in _WITH_ALPHA:
        return picture.convert(_WITH_ALPHA[picture.mode])
    if picture.mode in _SIXTEEN_BIT:
        return _sixteen_bit(picture)
    if picture.mode == "F":
        raise ImageError("a picture of floats has no agreed range: scale it to 8 bits first")
    return picture.convert("RGB")


def _sixteen_bit(picture: "Image") -> "Image":
    wide = picture.convert("I")
    low, high = wide.getextrema()
    if not 0 <= low <= high <= 65535:  # type: ignore[operator]
        raise ImageError(f"a picture of 16 bits has values from 0 to 65535, this one from {low} to {high}: scale it")
    return wide.convert("I;16")
