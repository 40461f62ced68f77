"""From an HTTP answer to a typed result or an error of `beholder.errors`, and whether to ask again.

docs/errors.md is the contract: 503 is retried, so are a body that came too slowly (408), an overloaded service that was
set to say 429, and what a gateway says for a replica that is gone or such a body (502, 503, 504, 408 without a code of
ours). Nothing else is, least of all another 4xx.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

import httpx

from beholder.errors import BeholderError, EngineError, EngineUnavailable, ImageUnknown, Overloaded, RequestTimeout

GATEWAY_STATUSES: Final = frozenset({408, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Score:
    """`score` is the raw logit; `normalized` is None when the checkpoint is not calibrated; `truncated` says that the
    prompt was too long and lost its beginning, where the service is set to allow that."""

    score: float
    normalized: float | None
    truncated: bool
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
    truncated: list[bool]
    fingerprint: str
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Best:
    """The response with the greatest reward, its index among the candidates, and its reward."""

    response: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that a service has. `names` and `fingerprint` are what a client's `model` may be.

    `input`: what the model reads of a request's images: `image`, `text` (nothing) or `blank_image` (a white square in
    place of each). `overlong` is what the service does with a prompt of more than `max_tokens`: `refuse` or `truncate`.
    """

    id: str
    names: list[str]
    engine: str
    fingerprint: str
    base_model: str
    architecture: str
    algorithm: str
    input: str
    dtype: str
    calibrated: bool
    max_tokens: int
    overlong: str
    max_images: int
    max_image_bytes: int
    max_image_pixels: int
    max_image_aspect: float
    max_image_frames: int


Result = TypeVar("Result", Score, Ranking, ModelCard)


class Failed(Exception):
    """An attempt that may succeed when repeated, after `retry_after_s`; `gone` when the replica itself did not answer.

    Callers of the client never see it.
    """

    def __init__(self, error: BeholderError, retry_after_s: float = 0, gone: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s
        self.gone = gone

    def again(self) -> "Failed":
        """For another call that it concerns: what is raised collects the frames of all that raise it."""
        return Failed(self.error, self.retry_after_s, self.gone)


def read_score(answer: Mapping[str, Any]) -> Score:
    """Raises EngineError on an answer that is not one."""
    (score,) = _rewards(answer, "scores", 1)
    normalized = _rewards(answer, "normalized", 1)[0] if answer.get("normalized") is not None else None
    truncated = any(answer.get("truncated", ()))
    return _build(Score, {**answer, "score": score, "normalized": normalized, "truncated": truncated})


def read_ranking(answer: Mapping[str, Any], count: int) -> Ranking:
    """The ranking of `count` responses. Raises EngineError on an answer that is not one."""
    _rewards(answer, "scores", count)
    truncated = answer.get("truncated", [False] * count)
    if not isinstance(truncated, list) or len(truncated) != count:
        raise EngineError(f"the service answered truncated {truncated!r:.80}, not {count} of true and false")
    return _build(Ranking, {"normalized": None, **answer, "truncated": truncated})


def read_models(answer: Mapping[str, Any]) -> list[ModelCard]:
    """At least one. Raises EngineError on an answer that is not one."""
    cards = answer.get("models")
    if not isinstance(cards, list) or not cards:
        raise EngineError(f"the service answered models {cards!r:.80}, not a list of them")
    return [_build(ModelCard, card) for card in cards]


def read_body(response: httpx.Response) -> dict[str, Any]:
    """The JSON of a success. Raises Failed for what is worth another attempt, else BeholderError."""
    body = _json(response)
    if response.is_success and body is not None:
        return body
    if response.is_success and "json" in response.headers.get("content-type", ""):
        raise Failed(EngineError(f"{response.request.url}: the answer breaks off"))
    kind = _kind(body)
    error = _error(response, kind, body)
    passing = kind is not None and issubclass(kind, Overloaded | RequestTimeout)
    if response.status_code == 503 or passing or (response.status_code in GATEWAY_STATUSES and kind is None):
        # Only a replica that could still speak for itself says that it is overloaded.
        gone = kind in (None, EngineUnavailable)
        raise Failed(error, _retry_after_s(response), gone)
    raise error


def _json(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _kind(body: dict[str, Any] | None) -> type[BeholderError] | None:
    """The class of the answer's code; None where it has none of ours, as the answer of a gateway."""
    code = None if body is None else body.get("code")
    return _classes().get(code) if isinstance(code, str) else None


def _error(response: httpx.Response, kind: type[BeholderError] | None, body: dict[str, Any] | None) -> BeholderError:
    if body is None or kind is None:
        said = "without JSON" if body is None else f"{str(body.get('detail', response.text))!r:.300}"
        foreign = EngineUnavailable if response.status_code in GATEWAY_STATUSES else EngineError
        return foreign(f"{response.request.url} answered {response.status_code} {said}: is this a Beholder service?")
    detail = str(body.get("detail", response.text))
    if kind is ImageUnknown:
        return ImageUnknown(detail, str(body.get("sha256", "")))
    return kind(detail)


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds, as the service sends them; a date, which gateways may send, is as good as none."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


def _rewards(answer: Mapping[str, Any], name: str, count: int) -> list[float]:
    values = answer.get(name)
    if not isinstance(values, list) or len(values) != count or not all(map(_is_finite, values)):
        raise EngineError(f"the service answered {name} {values!r:.80}, not {count} finite numbers")
    return values


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _build(kind: type[Result], answer: Mapping[str, Any]) -> Result:
    """From the members that the class has a field for: a newer service may answer more."""
    try:
        members = {**answer, **answer.get("usage", {}), "fingerprint": str(answer["fingerprint"])}
        return kind(**{field.name: members[field.name] for field in fields(kind)})
    except (KeyError, TypeError) as missing:
        raise EngineError(f"the service's answer lacks {missing}: is this a Beholder service?") from None


def _classes() -> dict[object, type[BeholderError]]:
    return {error.code: error for error in _tree(BeholderError)}


def _tree(root: type[BeholderError]) -> Iterator[type[BeholderError]]:
    """Children first, so that a code which a child inherits stays its parent's."""
    for child in root.__subclasses__():
        yield from _tree(child)
    yield root
