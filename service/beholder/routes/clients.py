"""What clients of other servers speak: vLLM's /classify, Cohere's and Jina's /v1/rerank and /v2/rerank."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from beholder.compatibility import (
    ClassifyItem,
    ClassifyRequest,
    ClassifyResponse,
    DocumentText,
    QueryParts,
    RerankRequest,
    RerankResponse,
    RerankResult,
    RerankUsage,
    TokenUsage,
    read_chat,
    read_content,
    text_of,
)
from beholder.engine import EngineScore
from beholder.errors import InvalidRequest
from beholder.models import Model
from beholder.policy_template import PolicyTemplate
from beholder.problems import ID_KEY
from beholder.prompts import Turn
from beholder.rewards import best_first
from beholder.routes.answering import SCORING, answer, choose_model, score_samples
from beholder.routes.context import context_of
from beholder.routes.reading import read_model
from beholder.routes.trainers import exchanges
from beholder.scoring import Sample

router = APIRouter(tags=["compatibility"])
CLASSIFY: Final = TypeAdapter(ClassifyRequest)
RERANK: Final = TypeAdapter(RerankRequest)
LABEL: Final = "reward"


@router.post("/classify", response_model=ClassifyResponse, responses=SCORING, summary="vLLM's /classify")
async def classify(request: Request) -> Response:
    """One class, whose probability is the logit's sigmoid, or the logit itself when `use_activation` is false.

    A string of `input` alone does not tell a forged turn in a response from a real one; `messages` does.
    """
    body = await read_model(request, CLASSIFY)
    scorer = choose_model(request, body.model)
    policy = context_of(request).policy
    templates = [scorer.model.own_template or policy, policy]
    samples = await asyncio.to_thread(_classify_samples, scorer.model, templates, body)
    scores = await score_samples(request, scorer, samples)
    data = [
        ClassifyItem(index=index, label=LABEL, probs=[_shown(score.logit, raw=body.raw)], num_classes=1)
        for index, score in enumerate(scores)
    ]
    tokens = _tokens(scores)
    return answer(
        ClassifyResponse(
            id=f"classify-{request.scope[ID_KEY]}",
            created=int(time.time()),
            model=scorer.model.name,
            data=data,
            usage=TokenUsage(prompt_tokens=tokens, total_tokens=tokens),
        )
    )


@router.post("/v1/rerank", response_model=RerankResponse, responses=SCORING, summary="Cohere's and Jina's rerank")
@router.post("/v2/rerank", response_model=RerankResponse, responses=SCORING, summary="Cohere's rerank, version 2")
async def rerank(request: Request) -> Response:
    """The documents are responses to the query, best first."""
    body = await read_model(request, RERANK)
    scorer = choose_model(request, body.model)
    texts = _documents(body)
    query = body.query.content if isinstance(body.query, QueryParts) else body.query
    parts, sources = await asyncio.to_thread(read_content, "user", query, scorer.model.settings.max_images)
    conversation = (Turn("user", parts),)
    samples = [Sample(conversation, tuple(sources), text, f"documents[{index}]") for index, text in enumerate(texts)]
    scores = await score_samples(request, scorer, samples)
    order = best_first([score.logit for score in scores])[: body.top_n or None]
    results = [
        RerankResult(
            index=index,
            document=DocumentText(text=texts[index]) if body.return_documents else None,
            relevance_score=_shown(scores[index].logit, raw=not body.use_activation),
        )
        for index in order
    ]
    tokens = _tokens(scores)
    return answer(
        RerankResponse(
            id=f"rerank-{request.scope[ID_KEY]}",
            model=scorer.model.name,
            usage=RerankUsage(prompt_tokens=tokens, total_tokens=tokens),
            results=results,
        )
    )


def _classify_samples(model: Model, templates: Sequence[PolicyTemplate], body: ClassifyRequest) -> list[Sample]:
    if body.messages is not None:
        *messages, last = body.messages
        response = text_of(last.content)
        if response is None:
            raise InvalidRequest("messages: the last one is scored and must be text")
        return [Sample(*read_chat(messages, model.settings.max_images), response)]
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    return exchanges(model, templates, texts, "input")


def _documents(body: RerankRequest) -> list[str]:
    texts = []
    for index, document in enumerate(body.documents):
        match document:
            case str():
                text: str | None = document
            case DocumentText():
                text = document.text
            case QueryParts():
                text = text_of(document.content)
        if text is None:
            raise InvalidRequest(f"documents[{index}]: a document is a response and must be text")
        texts.append(text)
    return texts


def _shown(logit: float, *, raw: bool) -> float:
    if raw:
        return logit
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def _tokens(scores: Sequence[EngineScore]) -> int:
    return sum(score.prompt_tokens for score in scores)
