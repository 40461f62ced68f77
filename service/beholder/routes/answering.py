"""What the scoring routes share: score a request's samples, and say in their documentation how they refuse."""

from collections.abc import Sequence
from typing import Any, Final

from fastapi import Request, Response
from pydantic import BaseModel

from beholder.engine import EngineScore
from beholder.errors import ModelNotFound
from beholder.load_shedding import PLACES_KEY
from beholder.middleware import FINGERPRINT_KEY, LOG_KEY
from beholder.problems import MEDIA_TYPE
from beholder.routes.context import context_of
from beholder.routes.reading import until_gone
from beholder.schemas import Problem
from beholder.scoring import Sample, Scorer

_REFUSALS: Final = {
    400: "Not a request that can be read.",
    401: "An API key is needed.",
    404: "No such model.",
    405: "Another method is needed.",
    408: "The request came too slowly.",
    413: "Body or image too large.",
    415: "The body is compressed.",
    422: "The request cannot be answered; `code` says why.",
    429: "Overloaded, where the service is set to say it so: retry.",
    431: "URL and headers are too large.",
    500: "Internal error; `instance` is its id in the log.",
    503: "Not ready, or overloaded: retry.",
    504: "Not answered within the deadline.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of a route, for its documentation; those that every route has are added."""
    chosen = {400, 401, 405, 429, 431, 500, *statuses}
    return {
        status: {
            "description": _REFUSALS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
        }
        for status in sorted(chosen)
    }


SCORING: Final = refusals(404, 408, 413, 415, 422, 503, 504)


def choose_model(request: Request, name: str | None) -> Scorer:
    """The scorer of the model that has this name or fingerprint, of the first where it is left out.

    The answer's header has the model's fingerprint from now on. Raises ModelNotFound.
    """
    scorers = context_of(request).scorers
    for scorer in scorers:
        if name is None or name in scorer.model.names or name == scorer.model.fingerprint:
            request.scope[FINGERPRINT_KEY] = scorer.model.fingerprint
            return scorer
    served = " or ".join(repr(scorer.model.name) for scorer in scorers)
    raise ModelNotFound(f"no model of this name is served: leave `model` out, or send {served}")


async def score_samples(request: Request, scorer: Scorer, samples: Sequence[Sample]) -> list[EngineScore]:
    """The scores by the scorer's model, in order; of no samples, none. Raises BeholderError."""
    context = context_of(request)
    context.lifecycle.require_accepting()
    images = sum(len(sample.images) for sample in samples)
    request.scope[LOG_KEY].update(model=scorer.model.name, samples=len(samples), images=images)
    if not samples:
        return []
    with context.in_flight.accept(request.scope[PLACES_KEY], len(samples)):
        scores = await until_gone(request, scorer.score(samples), context.settings.request_deadline_s)
    request.scope[LOG_KEY].update(
        prompt_tokens=sum(score.prompt_tokens for score in scores),
        cached_tokens=sum(score.cached_tokens for score in scores),
        from_cache=sum(score.from_cache for score in scores),
    )
    return scores


def answer(body: BaseModel, *, exclude_none: bool = True) -> Response:
    return Response(body.model_dump_json(exclude_none=exclude_none), media_type="application/json")
