"""Chats as trainers hold them (images inside of the messages, or beside them) -> a sample for the client."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from beholder.client import ImageInput, Prompt, Sample
from beholder.errors import InvalidRequest

IMAGE_TAG: Final = "<image>"
DEFAULT_END: Final = "<|im_end|>"


def chat_sample(prompt: Any, completion: Any, images: Iterable[Any] = ()) -> Sample:
    """`prompt` is a string or messages, `completion` a string or the one message that answers.

    Image parts that hold their image ({"type": "image", "image": ..}) bring it along, and `images`, which trainers pass
    too, are the same ones again. Image parts without take `images` in turn; in messages without any image part `images`
    come before the first user's text. Raises InvalidRequest.
    """
    response = _text(completion)
    if isinstance(prompt, str):
        return Sample(prompt, list(images), response)
    messages, found = _with_images([dict(message) for message in prompt], list(images))
    return Sample(messages, found, response)


def without_end_of_turn(response: str) -> str:
    """What the policy wrote, without what it ends a turn with: BEHOLDER_END_OF_TURN, once, at the very end.

    For trainers that hand on special tokens: the service would score it as characters of the response.
    """
    return response.removesuffix(os.environ.get("BEHOLDER_END_OF_TURN", DEFAULT_END))


def tagged_messages(messages: Iterable[Mapping[str, Any]], images: int) -> list[dict[str, Any]]:
    """Messages whose strings have `<image>` at the place of each of `images`, with parts instead.

    Without any tag the images are left to come first. Raises InvalidRequest on another number of tags.
    """
    copied = [dict(message) for message in messages]
    texts = [str(message["content"]) for message in copied if message.get("role") == "user"]
    tags = sum(text.count(IMAGE_TAG) for text in texts)
    if tags not in (0, images):
        raise InvalidRequest(f"the messages have {tags} {IMAGE_TAG} but there are {images} images")
    if tags:
        for message in copied:
            if message.get("role") == "user" and isinstance(message["content"], str):
                message["content"] = _parts(message["content"])
    return copied


def _parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_TAG)):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _with_images(messages: list[dict[str, Any]], beside: list[Any]) -> tuple[Prompt, list[ImageInput]]:
    left = [] if any(map(_holds_image, messages)) else list(beside)
    found: list[Any] = []
    plain: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str):
            content = [_part(part, left, found) for part in content or ()]
        plain.append({"role": message.get("role"), "content": content})
    if not left:
        return plain, found
    if found:
        raise InvalidRequest(f"the prompt has {len(found)} image places, there are {len(left)} images more: mark them")
    return _images_first(plain, len(left)), left


def _holds_image(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return not isinstance(content, str) and any(part.get("image") is not None for part in content or ())


def _part(part: Mapping[str, Any], left: list[Any], found: list[Any]) -> dict[str, str]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind != "image":
        raise InvalidRequest(f"a part of type {kind!r} cannot be scored: messages have text and image parts")
    image = part.get("image")
    if image is None:
        if not left:
            raise InvalidRequest("the prompt has an image place, but no image is left for it")
        image = left.pop(0)
    found.append(image)
    return {"type": "image"}


def _images_first(messages: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The images before the first user's text, as the trainers put them themselves."""
    copied = list(messages)
    for number, message in enumerate(copied):
        if message["role"] == "user":
            content = message["content"]
            texts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            copied[number] = {**message, "content": [*[{"type": "image"}] * count, *texts]}
            return copied
    raise InvalidRequest("the prompt has no message of the user")


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Mapping):
        content = completion.get("content")
        if isinstance(content, str):
            return content
        if content and all(part.get("type") == "text" for part in content):
            return "".join(part["text"] for part in content)
        raise InvalidRequest(f"a completion is text, not {content!r:.60}")
    if len(completion) != 1:
        raise InvalidRequest(f"a completion of {len(completion)} messages cannot be scored: it must be one answer")
    return _text(completion[0])
