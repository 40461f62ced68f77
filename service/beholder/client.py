"""A client for training loops: synchronous, typed, needs httpx alone (no torch, no vLLM, no FastAPI).

    with RewardClient("http://127.0.0.1:8000") as client:
        ranking = client.rank("Which fruit is this?", [Path("apple.jpg")], ["An apple.", "A pear."])
        print(ranking.best, ranking.scores)

An error of the service arrives as the class of `beholder.errors` that has its code.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self

import httpx

from beholder.errors import (
    BeholderError,
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    FingerprintMismatch,
    ImageNotFound,
)


class PillowImage(Protocol):
    """What is used of PIL.Image.Image, so that Pillow is not needed for files and bytes."""

    def save(self, fp: Any, /, format: str) -> None: ...  # noqa: A002 (Pillow's name)


ImageInput = Path | str | bytes | PillowImage
"""A file (its path), a file's bytes, or a picture in memory (sent as PNG)."""
Prompt = str | Sequence[Mapping[str, Any]]
"""A plain prompt, whose images come first, or `messages` as POST /rank takes them."""


@dataclass(frozen=True, slots=True)
class Score:
    """`score` is the raw logit; `normalized` is None when the checkpoint is not calibrated."""

    score: float
    normalized: float | None
    fingerprint: str
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """`ranks[i]` is the rank of response i (0 is best), `order` the responses from best to worst."""

    scores: list[float]
    normalized: list[float] | None
    ranks: list[int]
    order: list[int]
    best: int
    fingerprint: str
    prompt_tokens: int
    cached_tokens: int


class RewardClient:
    """One connection pool to one service.

    `timeout` is in seconds, for each wait on the network; `fingerprint` pins the checkpoint; `transport` replaces the
    network in tests.
    """

    def __init__(
        self,
        base_url: str,
        timeout: float = 300,
        *,
        fingerprint: str | None = None,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._fingerprint = fingerprint
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=base_url, timeout=timeout, transport=transport, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def score(self, prompt: Prompt, images: Sequence[ImageInput], response: str) -> Score:
        """The reward of one response. Raises BeholderError."""
        answer = self._post("/score", {**_context(prompt, images), "response": response})
        (score,), normalized = answer["scores"], answer.get("normalized")
        normalized_score = normalized[0] if normalized else None
        return Score(score, normalized_score, answer["fingerprint"], **_known(Score, answer["usage"]))

    def rank(self, prompt: Prompt, images: Sequence[ImageInput], responses: Sequence[str]) -> Ranking:
        """The rewards of all responses and their order. Raises BeholderError."""
        answer = self._post("/rank", {**_context(prompt, images), "responses": list(responses)})
        return Ranking(**{"normalized": None, **_known(Ranking, answer), **_known(Ranking, answer["usage"])})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        url = self._http.base_url.join(path)
        try:
            response = self._http.post(path, json=body)
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(f"{url} did not answer in time ({type(error).__name__})") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise EngineUnavailable(f"{url} cannot be reached: {error}") from None
        answer = _read(response)
        if self._fingerprint not in (None, answer["fingerprint"]):
            raise FingerprintMismatch(f"{url} serves {answer['fingerprint'][:12]}..., not {self._fingerprint}")
        return answer


def encode_image(image: ImageInput) -> str:
    """base64 of a file's bytes. Raises ImageNotFound, which names the file."""
    if isinstance(image, Path | str):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise ImageNotFound(f"image {image}: {error.strerror}") from None
    elif isinstance(image, bytes):
        data = image
    else:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        data = buffer.getvalue()
    return base64.b64encode(data).decode()


def _context(prompt: Prompt, images: Sequence[ImageInput]) -> dict[str, Any]:
    key = "prompt" if isinstance(prompt, str) else "messages"
    return {key: prompt, "images": [encode_image(image) for image in images]}


def _known(kind: type[Score | Ranking], values: dict[str, Any]) -> dict[str, Any]:
    """What a class has a field for: a newer service may answer more."""
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def _read(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise EngineError(f"{response.url} answered {response.status_code} without JSON: is this a Beholder service?")
    if response.is_success:
        return body
    detail, code = body.get("detail", response.text), body.get("code")
    raise _classes().get(code, EngineError)(str(detail))


def _classes() -> dict[object, type[BeholderError]]:
    return {error.code: error for error in _tree(BeholderError)}


def _tree(root: type[BeholderError]) -> Iterator[type[BeholderError]]:
    """Children first, so that a code which a child inherits stays its parent's."""
    for child in root.__subclasses__():
        yield from _tree(child)
    yield root
