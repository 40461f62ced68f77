"""Chats as trainers hold them (images inside of the messages, or beside them) -> a sample for the client."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from beholder.client import ImageInput, Prompt, Sample
from beholder.errors import DataError, InvalidRequest

IMAGE_TAG: Final = "<image>"
DEFAULT_ENDS: Final = "<|im_end|> <|endoftext|> <|eot_id|> <|end_of_text|> <end_of_turn> <turn|> <eos> </s>"
_HOLDING: Final = ("image", "image_url", "url", "path")
"""Where a part of type image or image_url holds its image: TRL's and Qwen's, OpenAI's, transformers'."""


def chat_sample(prompt: Any, completion: Any, images: Iterable[Any] = ()) -> Sample:
    """`prompt` is a string or messages, `completion` a string or the one message that answers.

    Image parts that hold their image ({"type": "image", "image": ..}, or OpenAI's image_url) bring it along, and
    `images`, which trainers pass too, are the same ones again. Image parts without take `images` in turn; without any
    image part `<image>` in the user's text is the place of the next of `images`, and without that too they come before
    the first user's text. Raises InvalidRequest.
    """
    response = _text(completion)
    beside = list(images)
    if isinstance(prompt, str):
        if not (beside and IMAGE_TAG in prompt):
            return Sample(prompt, beside, response)
        prompt = [{"role": "user", "content": prompt}]
    messages = [dict(message) for message in prompt]
    if beside and not any(map(_has_image_part, messages)):
        messages = _tagged_messages(messages, len(beside))
    asked, found = _with_images(messages, beside)
    return Sample(asked, found, response)


def labelled_sample(trainer: str, label: Any, response: str) -> Sample:
    """For trainers that pass the answer's column alone: an object with `prompt` and `images`, or its JSON.

    Raises DataError, InvalidRequest.
    """
    try:
        asked = json.loads(label) if isinstance(label, str) else label
    except ValueError:
        asked = None
    if not isinstance(asked, Mapping) or asked.get("prompt") is None:
        raise DataError(f'{trainer}: the label must be {{"prompt": .., "images": [..]}} or its JSON')
    return chat_sample(asked["prompt"], without_end_of_turn(response), asked.get("images") or [])


def held_images(messages: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The images inside of the messages, in order."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if content and not isinstance(content, str) for part in content]
    return [image for image in map(_held, parts) if image is not None]


def without_end_of_turn(response: str) -> str:
    """What the policy wrote, without what it ends a turn with: one of BEHOLDER_END_OF_TURN, once, at the very end.

    For trainers that hand on special tokens: the service would score it as characters of the response.
    """
    ends = re.split(r"[\s,]+", os.environ.get("BEHOLDER_END_OF_TURN", DEFAULT_ENDS))
    return response.removesuffix(max(filter(response.endswith, ends), key=len, default=""))


def without_reasoning(response: str) -> str:
    """What follows the last </think> and its line breaks; nothing where thoughts have begun and not ended."""
    _, end, answer = response.rpartition("</think>")
    if answer.lstrip().startswith("<think>"):
        return ""
    return answer.lstrip("\n") if end else response


def _tagged_messages(messages: Iterable[Mapping[str, Any]], images: int) -> list[dict[str, Any]]:
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
    left = [] if held_images(messages) else list(beside)
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
    return not isinstance(content, str) and any(part.get("type") in ("image", "image_url") for part in content or ())


def _held(part: Mapping[str, Any]) -> Any:
    """The image that a part holds; None for the place of one, and for other parts."""
    if part.get("type") not in ("image", "image_url"):
        return None
    image = next((part[name] for name in _HOLDING if part.get(name) is not None), None)
    return image.get("url") if isinstance(image, Mapping) and "url" in image else image


def _part(part: Mapping[str, Any], left: list[Any], found: list[Any]) -> dict[str, str]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "image_url"):
        raise InvalidRequest(f"a part of type {kind!r} cannot be scored: messages have text and image parts")
    image = _held(part)
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
        if not content:
            return ""  # such as thoughts alone, which TRL keeps in another field
        if all(part.get("type") == "text" for part in content):
            return "".join(part["text"] for part in content)
        raise InvalidRequest(f"a completion is text, not {content!r:.60}")
    if len(completion) != 1:
        raise InvalidRequest(f"a completion of {len(completion)} messages cannot be scored: it must be one answer")
    return _text(completion[0])
