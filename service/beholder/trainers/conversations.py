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
    too, are the same ones again. Image parts without take `images` in turn; without any image part `<image>` in the
    user's text is the place of the next of `images`, and without that too they come before the first user's text.
    Raises InvalidRequest.
    """
    response = _text(completion)
    beside = list(images)
    if isinstance(prompt, str):
        if not (beside and IMAGE_TAG in prompt):
            return Sample(prompt, beside, response)
        prompt = [{"role": "user", "content": prompt}]
    messages = [dict(message) for message in prompt]
    if beside and not any(map(_has_image_part, messages)):
        messages = tagged_messages(messages, len(beside))
    asked, found = _with_images(messages, beside)
    return Sample(asked, found, response)


def without_end_of_turn(response: str) -> str:
    """What the policy wrote, without what it ends a turn with: BEHOLDER_END_OF_TURN, once, at the very end.

    For trainers that hand on special tokens: the service would score it as characters of the response.
    """
    return response.removesuffix(os.environ.get("BEHOLDER_END_OF_TURN", DEFAULT_END))


def tagged_messages(messages: Iterable[Mapping[str, Any]], images: int) -> list[dict[str, Any]]:
    """Messages whose user's texts have `<image>` at the place of each of `images`, with parts instead.

    Without any tag the images are left to come first. A line break behind a tag that begins the text belongs to the
    tag. Raises InvalidRequest on another number of tags.
    """
    copied = [dict(message) for message in messages]
    asked = [message for message in copied if message.get("role") == "user"]
    tags = sum(text.count(IMAGE_TAG) for message in asked for text in _texts_of(message.get("content")))
    if tags not in (0, images):
        raise InvalidRequest(f"the messages have {tags} {IMAGE_TAG} but there are {images} images")
    if tags:
        for message in asked:
            message["content"] = _with_places(message.get("content"))
    return copied


def _texts_of(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if part.get("type") == "text"]


def _with_places(content: Any) -> list[Any]:
    """Parts of strings and of text parts; others stay."""
    if isinstance(content, str):
        return _parts(content)
    places: list[Any] = []
    for part in content or ():
        places += _parts(part["text"]) if part.get("type") == "text" else [part]
    return places


def _parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_TAG)):
        if number:
            parts.append({"type": "image"})
        if parts and all(part["type"] == "image" for part in parts):
            piece = piece.removeprefix("\n")
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _with_images(messages: list[dict[str, Any]], beside: list[Any]) -> tuple[Prompt, list[ImageInput]]:
    left = [] if any(map(_holds_image, messages)) else list(beside)
    found: list[Any] = []
    plain: list[dict[str, Any]] = []
    for message in messages:
        _refuse_tool_calls(message)
        content = message.get("content")
        if not isinstance(content, str):
            content = [_part(part, left, found) for part in content or ()]
        plain.append({"role": message.get("role"), "content": content})
    if not left:
        return plain, found
    if found:
        raise InvalidRequest(f"the prompt has {len(found)} image places, there are {len(left)} images more: mark them")
    return _images_first(plain, len(left)), left


def _refuse_tool_calls(message: Mapping[str, Any]) -> None:
    """A reward for the text alone would be that of another conversation."""
    if message.get("tool_calls"):
        raise InvalidRequest("a message with tool_calls cannot be scored: the reward model reads text and images")


def _has_image_part(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return not isinstance(content, str) and any(part.get("type") == "image" for part in content or ())


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
        _refuse_tool_calls(completion)
        content = completion.get("content")
        if isinstance(content, str):
            return content
        if content and all(part.get("type") == "text" for part in content):
            return "".join(part["text"] for part in content)
        raise InvalidRequest(f"a completion is text, not {content!r:.60}")
    if len(completion) != 1:
        raise InvalidRequest(f"a completion of {len(completion)} messages cannot be scored: it must be one answer")
    return _text(completion[0])
