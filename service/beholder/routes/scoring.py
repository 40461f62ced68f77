"""POST /score and POST /rank."""

from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from beholder.engine import EngineScore
from beholder.errors import InvalidRequest
from beholder.images.sources import ImageSource, Upload
from beholder.models import Model
from beholder.rewards import best_first, normalize, ranks
from beholder.routes.answering import SCORING, answer, choose_model, score_samples
from beholder.routes.reading import is_form, parse_beside, read_form, read_model
from beholder.schemas import (
    RankRequest,
    RankResponse,
    ScoreBatch,
    ScoreItem,
    ScoreOne,
    ScoreRequest,
    ScoreResponse,
    Usage,
)
from beholder.scoring import Sample

router = APIRouter(tags=["scoring"])
SCORE: Final[TypeAdapter[ScoreOne | ScoreBatch]] = TypeAdapter(ScoreRequest)
RANK: Final = TypeAdapter(RankRequest)


@router.post("/score", response_model=ScoreResponse, responses=SCORING, summary="Reward of one or more responses")
async def score(request: Request) -> Response:
    """Scores in the request's order: of one response, or of each of `items`."""
    body = await read_model(request, SCORE)
    scorer = choose_model(request, body.model)
    if isinstance(body, ScoreBatch):
        samples = [_sample(item, f"items[{index}]") for index, item in enumerate(body.items)]
    else:
        samples = [_sample(body, "")]
    scores = await score_samples(request, scorer, samples)
    return answer(ScoreResponse(**_common(scorer.model, scores)))


@router.post("/rank", response_model=RankResponse, responses=SCORING, summary="Rank the responses to one prompt")
async def rank(request: Request) -> Response:
    """Scores, ranks and order of the `responses`; prompt and images are computed once.

    As a form: the JSON in the field `request`, the images as files named `images`.
    """
    body, images = await _read_rank(request)
    scorer = choose_model(request, body.model)
    conversation = body.conversation(len(images))
    samples = [
        Sample(conversation, images, response, f"responses[{index}]") for index, response in enumerate(body.responses)
    ]
    scores = await score_samples(request, scorer, samples)
    order = best_first([score.logit for score in scores])
    common = _common(scorer.model, scores)
    return answer(RankResponse(**common, ranks=ranks(order), order=order[: body.top_n], best=order[0]))


async def _read_rank(request: Request) -> tuple[RankRequest, tuple[ImageSource, ...]]:
    if not is_form(request):
        body = await read_model(request, RANK)
        return body, body.sources()
    form = await read_form(request)
    body = await parse_beside(form.request, RANK)
    if body.images and form.files:
        raise InvalidRequest("images: give them in `request` or as files, not both")
    return body, tuple(map(Upload, form.files)) or body.sources()


def _sample(item: ScoreItem, place: str) -> Sample:
    return Sample(item.conversation(len(item.images)), item.sources(), item.response, place)


def _common(model: Model, scores: Sequence[EngineScore]) -> dict[str, Any]:
    logits = [score.logit for score in scores]
    usage = Usage(
        prompt_tokens=sum(score.prompt_tokens for score in scores),
        cached_tokens=sum(score.cached_tokens for score in scores),
    )
    return {
        "scores": logits,
        "normalized": normalize(logits, model.calibration) if model.calibration else None,
        "cached": [score.from_cache for score in scores],
        "truncated": [score.truncated for score in scores],
        "model": model.name,
        "fingerprint": model.fingerprint,
        "usage": usage,
    }
