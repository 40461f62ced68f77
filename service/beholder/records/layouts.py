"""One decoded row of any known layout -> prompt, responses, qualities and image references.

    completions, object of lists    VLFeedback as `datasets` gives it and as the published code wants it:
        {"prompt", "img_path", "completions": {"annotations": [{aspect: {"Rating": "4"}}], "response": [..]}}
    completions, list of objects    VLFeedback's own files:
        {"prompt", "img_path", "completions": [{"annotations": {aspect: {"Rating"}}, "response"}]}
    pairs                           {"prompt" or "question", "img_path" or "image", "chosen", "rejected"} (RLAIF-V too)
    pairs in `text`                 RLHF-V: {"text": '{"question", "chosen", "rejected"}', "image": {"bytes", "path"}}
    pairs as conversations          POVID: {"image", "conversations": [{"from": "human", "value": "<image>\\n.."},
                                    {"from": "gpt", "value"}], "rejected_conversations": [..]}
    to score                        {"prompt", "img_path", "responses": [..]}, optionally "best"

Pure functions; what is wrong is raised as BadRecord.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from beholder.records.problems import BadRecord

IMAGE_MARK = "<image>"  # how LLaVA-style prompts write the place of an image
_IMAGE_KEYS = ("images", "img_path", "image", "image_path")
_SOURCE = r"s?([_-]?(path|file|filename|name|url|byte)s?)?"
_LIKE_AN_IMAGE_KEY = re.compile(f"(img|image|picture|photo){_SOURCE}", re.IGNORECASE)
_OTHER_MEDIUM_KEY = re.compile(f"(video|audio|frame){_SOURCE}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Fields:
    """What a row says. `images` are paths (str) or bytes; a quality is None where the rating is no number."""

    id: str | None
    prompt: str
    images: tuple[str | bytes, ...]
    responses: tuple[str, ...]
    qualities: tuple[float | None, ...]


def parse_fields(raw: Any, where: str) -> Fields:
    """Raises BadRecord."""
    if not isinstance(raw, dict):
        raise BadRecord(where, "not-an-object", f"a record must be a JSON object, not {type(raw).__name__}")
    raw = _flatten({key: value for key, value in raw.items() if value is not None}, where)
    responses: list[Any]
    qualities: list[float | None]
    if "completions" in raw:
        responses, qualities = _completions(raw["completions"], where)
    elif "chosen" in raw or "rejected" in raw:
        responses, qualities = [_response(raw, "chosen", where), _response(raw, "rejected", where)], [1.0, 0.0]
    elif "responses" in raw:
        responses, qualities = _to_score(raw, where)
    else:
        raise BadRecord(
            where, "unknown-layout", "needs 'completions', or 'chosen' and 'rejected', conversations, or 'responses'"
        )
    for number, response in enumerate(responses):
        if not isinstance(response, str):
            raise BadRecord(where, "missing-response", f"response {number} is not a text")
    identity = raw.get("id", raw.get("idx"))
    return Fields(
        None if identity is None else str(identity),
        _prompt(raw, where),
        _images(raw, where),
        tuple(responses),
        tuple(qualities),
    )


def _flatten(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """RLHF-V's and POVID's layouts as plain pairs."""
    if "conversations" in raw:
        question, chosen = _question_and_answer(raw["conversations"], where)
        rejected_question, rejected = _question_and_answer(raw.get("rejected_conversations"), where)
        if _words(question) != _words(rejected_question):
            raise BadRecord(
                where, "bad-conversation", "'conversations' and 'rejected_conversations' ask different questions"
            )
        return {**raw, "prompt": question, "chosen": chosen, "rejected": rejected}
    if "text" not in raw or "chosen" in raw:
        return raw
    text = raw["text"]
    try:
        pair = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise BadRecord(where, "not-json", f"'text' is not JSON ({error})") from None
    return {**raw, **pair} if isinstance(pair, dict) else raw


def _question_and_answer(turns: Any, where: str) -> tuple[str, Any]:
    try:
        (asker, question), (answerer, answer) = ((turn["from"], turn["value"]) for turn in turns)
    except (TypeError, KeyError, ValueError):
        asker = answerer = question = answer = None
    if (asker, answerer) != ("human", "gpt") or not isinstance(question, str):
        raise BadRecord(
            where, "bad-conversation", "'conversations' and 'rejected_conversations' need one human and one gpt turn"
        )
    return question, answer


def _words(question: str) -> list[str]:
    """The question's words without the image mark, which one of POVID's two copies of a question may lack."""
    return question.replace(IMAGE_MARK, " ").split()


def _prompt(raw: dict[str, Any], where: str) -> str:
    """The prompt without LLaVA's image marks: the images' place comes from the model's own template."""
    value = raw.get("prompt", raw.get("question"))
    if isinstance(value, str):
        value = _without_marks(value, len(_images(raw, where)), where)
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(where, "missing-prompt", "'prompt' is missing or empty")
    return value


def _without_marks(prompt: str, images: int, where: str) -> str:
    """No more marks are taken off than there are images: a further one is text.

    Raises BadRecord for an image's mark between words: without it they would say something else.
    """
    while images and prompt.lstrip().startswith(IMAGE_MARK):
        prompt, images = prompt.lstrip().removeprefix(IMAGE_MARK).lstrip(), images - 1
    while images and prompt.rstrip().endswith(IMAGE_MARK):
        prompt, images = prompt.rstrip().removesuffix(IMAGE_MARK).rstrip(), images - 1
    if images and IMAGE_MARK in prompt:
        remedy = "images come before the text: move the mark to its beginning, and word the sentence without it"
        raise BadRecord(where, "bad-image-field", f"the prompt has {IMAGE_MARK} between its words, but {remedy}")
    return prompt


def _response(raw: dict[str, Any], key: str, where: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise BadRecord(where, "missing-response", f"{key!r} is missing or not a text")
    return value


def _images(raw: dict[str, Any], where: str) -> tuple[str | bytes, ...]:
    """Embedded bytes win over a path beside them, which names a file of whoever made the data.

    A key that only looks like an image's is refused, and any video, audio or frames: the record would be scored
    without its picture, or without what it is about.
    """
    if unread := [key for key in raw if raw[key] and _OTHER_MEDIUM_KEY.fullmatch(key)]:
        remedy = "models here see images and text alone: leave the record out, or the field where it does not matter"
        raise BadRecord(where, "unknown-image-field", f"{unread[0]!r} is not read: {remedy}")
    found = [_references(raw[key], key, where) for key in _IMAGE_KEYS if raw.get(key)]
    unknown = [key for key in raw if raw[key] and key not in _IMAGE_KEYS and _LIKE_AN_IMAGE_KEY.fullmatch(key)]
    if unknown and not found:
        known = ", ".join(_IMAGE_KEYS)
        raise BadRecord(where, "unknown-image-field", f"{unknown[0]!r} is not read: an image stands under {known}")
    embedded = (images for images in found if images and all(isinstance(image, bytes) for image in images))
    return next(embedded, found[0] if found else ())


def _references(value: Any, key: str, where: str) -> tuple[str | bytes, ...]:
    items = value if isinstance(value, list) else [value]
    references: list[Any] = [
        (item.get("bytes") or item.get("path")) if isinstance(item, dict) else item for item in items
    ]
    if not all(isinstance(item, str | bytes) and item for item in references):
        raise BadRecord(where, "bad-image-field", f"{key!r} must be a path or a list of paths, or hold image bytes")
    return tuple(references)


def _completions(raw: Any, where: str) -> tuple[list[Any], list[float | None]]:
    try:
        if isinstance(raw, list):
            rated = [(item["response"], item["annotations"]) for item in raw]
        else:
            rated = list(zip(raw["response"], raw["annotations"], strict=True))
    except (TypeError, KeyError, ValueError):
        raise BadRecord(
            where, "mismatched-completions", "'completions' needs 'response' and 'annotations', lists of one length"
        ) from None
    return [response for response, _ in rated], [_mean_rating(annotations) for _, annotations in rated]


def _mean_rating(annotations: Any) -> float | None:
    try:
        ratings = [float(aspect["Rating"]) for aspect in annotations.values()]
        mean = math.fsum(ratings) / len(ratings)  # exact: the order of the aspects makes no difference of a tie
    except (AttributeError, TypeError, KeyError, ValueError, ArithmeticError):
        return None
    return mean if math.isfinite(mean) else None


def _to_score(raw: dict[str, Any], where: str) -> tuple[list[Any], list[float | None]]:
    responses = raw["responses"]
    if not isinstance(responses, list) or not responses:
        raise BadRecord(where, "missing-response", "'responses' must be a list of texts")
    best = raw.get("best")
    if best is None:
        return responses, [0.0] * len(responses)
    if isinstance(best, float) and best.is_integer():  # pandas writes indices so where some are missing
        best = int(best)
    if type(best) is not int or not 0 <= best < len(responses):
        raise BadRecord(where, "bad-best", "'best' must be an index into 'responses'")
    return responses, [float(index == best) for index in range(len(responses))]
