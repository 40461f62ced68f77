"""The requests of a load test: prompts with rendered pictures, and several responses to each. Pure.

A sample is never sent twice unless `repeats` says so: the service would answer it from its score cache.
"""

import base64
import hashlib
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

ImageMode = Literal["reference", "value", "none"]
Route = Literal["score", "rank"]
WORDS: Final = ("object", "left", "right", "red", "blue", "green", "square", "circle", "is", "at", "the", "of", "and")


@dataclass(frozen=True, slots=True)
class Mix:
    """`prompts` prompts of `prompt_words` words, each with a picture of its own and `responses` responses of
    `response_words` words.

    route: "score" sends one response a request, "rank" all responses to a prompt. images: sent once ahead and then by
    reference, with each request by value, or none. unique_images: every request has a picture that was never seen.
    repeats: how often the same samples are sent. model: which of the service's; None asks its first.
    """

    route: Route = "score"
    prompts: int = 25
    responses: int = 8
    prompt_words: int = 20
    response_words: int = 60
    images: ImageMode = "reference"
    unique_images: bool = False
    width: int = 336
    height: int = 252
    repeats: int = 1
    seed: int = 0
    model: str | None = None

    @property
    def requests_a_round(self) -> int:
        """Requests that send every prompt with all its responses once."""
        return self.prompts * (1 if self.route == "rank" else self.responses)


@dataclass(frozen=True, slots=True)
class Item:
    """One request. `image` is the picture's file, which a reference needs sent ahead."""

    path: str
    body: bytes
    samples: int
    image: bytes | None


def items(mix: Mix, round_number: int) -> Iterator[Item]:
    """The requests of one round, shuffled as concurrent rollouts would send them; other rounds have other responses."""
    rng = random.Random(f"{mix.seed}/{round_number // mix.repeats}")
    pictures = [picture(mix, f"{mix.seed}/{index}") for index in range(mix.prompts)]
    made: list[Item] = []
    for index in range(mix.prompts):
        prompt = f"{index}: {_words(random.Random(f'{mix.seed}/{index}'), mix.prompt_words)}?"
        responses = [_words(rng, mix.response_words) for _ in range(mix.responses)]
        for group in [responses] if mix.route == "rank" else [[response] for response in responses]:
            made.append(_item(mix, prompt, pictures[index], group, f"{round_number}/{len(made)}"))
    rng.shuffle(made)
    yield from made


@lru_cache(maxsize=1024)
def picture(mix: Mix, name: str) -> bytes:
    """A PNG: noise of 12 x 9 cells, made larger, with a shape on it; another name gives another picture."""
    from PIL import Image, ImageDraw

    rng = random.Random(name)
    small = Image.frombytes("RGB", (12, 9), rng.randbytes(12 * 9 * 3))
    image = small.resize((mix.width, mix.height), Image.Resampling.NEAREST)
    box = (mix.width // 4, mix.height // 4, mix.width // 2, mix.height // 2)
    ImageDraw.Draw(image).ellipse(box, fill=(rng.randrange(256), rng.randrange(256), 0))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _item(mix: Mix, prompt: str, shared: bytes, responses: list[str], name: str) -> Item:
    image = None
    body: dict[str, Any] = {"prompt": prompt} if mix.model is None else {"prompt": prompt, "model": mix.model}
    if mix.images != "none":
        image = picture(mix, f"{mix.seed}/unique/{name}") if mix.unique_images else shared
        body["images"] = [_source(mix.images, image)]
    if mix.route == "rank":
        body["responses"] = responses
    else:
        body["response"] = responses[0]
    return Item(f"/{mix.route}", json.dumps(body).encode(), len(responses), image)


def _source(mode: ImageMode, image: bytes) -> str | dict[str, str]:
    if mode == "value":
        return base64.b64encode(image).decode()
    return {"sha256": hashlib.sha256(image).hexdigest()}


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))
