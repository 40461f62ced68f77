"""A call before it is sent: its body without the images, the images as files, and the key that routes it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from beholder.client.inputs import EncodedImage, ImageInput, Prompt, encode_image
from beholder.errors import InvalidRequest, InvalidText


@dataclass(frozen=True, slots=True)
class Call:
    """`key` is one text for prompt and images: calls that share both go to one replica. Without a body it is a GET."""

    path: str
    body: dict[str, Any] | None
    images: tuple[EncodedImage, ...]
    key: str


MODELS: Final = Call("/models", None, (), "/models")


def make_call(path: str, prompt: Prompt, images: Sequence[ImageInput], rest: dict[str, Any]) -> Call:
    """Reads and encodes the images. Raises ImageError, ImageNotFound, InvalidRequest, InvalidText."""
    context = {"prompt": prompt} if isinstance(prompt, str) else {"messages": _messages(prompt)}
    files = tuple(encode_image(image, index) for index, image in enumerate(images))
    key = encode_body({**context, "images": [file.sha256 for file in files]})
    return Call(path, {**context, **rest}, files, key.decode())


def _messages(prompt: object) -> list[Any]:
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise InvalidRequest(f"the prompt must be a string or a list of messages, not {type(prompt).__name__}")
    return list(prompt)


def encode_body(body: dict[str, Any]) -> bytes:
    """JSON. Raises InvalidText, InvalidRequest."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidText("the text has a lone surrogate: it is not valid Unicode, send UTF-8") from None
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the prompt or response cannot be sent as JSON: {error}") from None
