"""POST /score and POST /rank."""

from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from beholder.engine import EngineScore
from beholder.problems import MEDIA_TYPE
from beholder.rewards import best_first, normalize, ranks
from beholder.routes.context import Context, context_of
from beholder.routes.reading import read_model, until_gone
from beholder.schemas import (
    Problem,
    RankRequest,
    RankResponse,
    ScoreBatch,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
    Usage,
)
from beholder.scoring import Sample

router = APIRouter(tags=["scoring"])
SCORE: Final[TypeAdapter[ScoreItem | ScoreBatch]] = TypeAdapter(ScoreRequest)
RANK: Final = TypeAdapter(RankRequest)
PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}}
    for status, text in {
        413: "Body or image too large.",
        422: "The request cannot be scored; `code` says why.",
        500: "Internal error; `instance` is its id in the log.",
        503: "Not ready, or overloaded: retry.",
        504: "Not answered within the deadline.",
    }.items()
}


@router.post("/score", response_model=ScoreResponse, responses=PROBLEMS, summary="Reward of one or more responses")
async def score(request: Request) -> Response:
    """Scores in the request's order: of one response, or of each of `items`."""
    body = await read_model(request, SCORE)
    if isinstance(body, ScoreBatch):
        samples = [_sample(item, f"items[{index}]") for index, item in enumerate(body.items)]
    else:
        samples = [_sample(body, "")]
    context, scores = await _score(request, samples)
    return _answer(ScoreResponse(**_common(context, scores)))


@router.post("/rank", response_model=RankResponse, responses=PROBLEMS, summary="Rank the responses to one prompt")
async def rank(request: Request) -> Response:
    """Scores, ranks and order of the `responses`; prompt and images are computed once."""
    body = await read_model(request, RANK)
    conversation, images = body.conversation(), tuple(body.images)
    samples = [
        Sample(conversation, images, response, f"responses[{index}]") for index, response in enumerate(body.responses)
    ]
    context, scores = await _score(request, samples)
    order = best_first([score.logit for score in scores])
    return _answer(RankResponse(**_common(context, scores), ranks=ranks(order), order=order, best=order[0]))


def _sample(item: ScoreItem, place: str) -> Sample:
    return Sample(item.conversation(), tuple(item.images), item.response, place)


async def _score(request: Request, samples: Sequence[Sample]) -> tuple[Context, list[EngineScore]]:
    context = context_of(request)
    context.lifecycle.require_accepting()
    scores = await until_gone(request, context.scorer.score(samples), context.settings.request_deadline_s)
    return context, scores


def _common(context: Context, scores: Sequence[EngineScore]) -> dict[str, Any]:
    logits = [score.logit for score in scores]
    calibration = context.checkpoint.manifest.calibration
    usage = Usage(
        prompt_tokens=sum(score.prompt_tokens for score in scores),
        cached_tokens=sum(score.cached_tokens for score in scores),
    )
    return {
        "scores": logits,
        "normalized": normalize(logits, calibration) if calibration else None,
        "fingerprint": context.checkpoint.fingerprint,
        "usage": usage,
    }


def _answer(answer: ScoreResponse) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")
