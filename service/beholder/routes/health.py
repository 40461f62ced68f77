"""Probes, metrics and what is served."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from beholder.problems import problem
from beholder.routes.answering import refusals
from beholder.routes.context import Context, context_of
from beholder.schemas import ModelCard, ModelList, Problem

router = APIRouter(tags=["operations"])
UNREADY: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "Not ready; `detail` says why."}}


@router.get("/livez", summary="The process runs", response_class=PlainTextResponse)
async def livez() -> str:
    return "ok"


@router.get("/readyz", summary="Scores can be asked for", responses=UNREADY)
async def readyz(request: Request) -> Response:
    """200 once the engine is loaded and the golden samples scored as trained; 503 before, and from SIGTERM on."""
    context = context_of(request)
    if (reason := context.lifecycle.unready) is not None:
        return problem(503, reason.code, str(reason), request.scope)
    return JSONResponse({"status": "ready", "fingerprint": context.checkpoint.fingerprint})


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse, responses=refusals())
async def metrics(request: Request) -> Response:
    return Response(context_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/models", summary="The checkpoint that is served", responses=refusals())
async def models(request: Request) -> ModelList:
    return ModelList(models=[_card(context_of(request))])


def _card(context: Context) -> ModelCard:
    manifest, settings = context.checkpoint.manifest, context.settings
    return ModelCard(
        id=settings.names[0],
        names=list(settings.names),
        engine=settings.chosen_engine,
        fingerprint=context.checkpoint.fingerprint,
        base_model=manifest.base_model,
        architecture=manifest.architecture,
        algorithm=manifest.algorithm,
        dtype=settings.dtype or manifest.dtype,
        calibrated=manifest.calibration is not None,
        max_tokens=context.engine.max_tokens,
        max_images=settings.max_images,
    )
