"""Probes, metrics and what is served."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from beholder.models import Model
from beholder.problems import problem
from beholder.routes.answering import refusals
from beholder.routes.context import context_of
from beholder.schemas import ModelCard, ModelList, Problem

router = APIRouter(tags=["operations"])
UNREADY: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "Not ready; `detail` says why."}}


@router.get("/livez", summary="The process runs", response_class=PlainTextResponse)
async def livez() -> str:
    return "ok"


@router.get("/readyz", summary="Scores can be asked for", responses=UNREADY)
async def readyz(request: Request) -> Response:
    """200 once every model is loaded and its golden samples scored as trained; 503 before, and from SIGTERM on."""
    context = context_of(request)
    if (reason := context.lifecycle.unready) is not None:
        return problem(503, reason.code, str(reason), request.scope)
    return JSONResponse({"status": "ready", "fingerprint": context.scorers[0].model.fingerprint})


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse, responses=refusals())
async def metrics(request: Request) -> Response:
    return Response(context_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/models", summary="The models that are served", responses=refusals())
async def models(request: Request) -> ModelList:
    """The first one answers where a request names none."""
    return ModelList(models=[_card(scorer.model) for scorer in context_of(request).scorers])


def _card(model: Model) -> ModelCard:
    manifest, settings = model.checkpoint.manifest, model.settings
    return ModelCard(
        id=model.name,
        names=list(model.names),
        engine=settings.chosen_engine,
        fingerprint=model.fingerprint,
        base_model=manifest.base_model,
        architecture=manifest.architecture,
        algorithm=manifest.algorithm,
        input=manifest.input,
        dtype=model.dtype,
        calibrated=model.calibration is not None,
        max_tokens=model.engine.max_tokens,
        overlong=settings.overlong,
        max_images=settings.max_images,
        max_image_bytes=settings.max_image_bytes,
        max_image_pixels=settings.max_image_pixels,
        max_image_aspect=settings.max_image_aspect,
        max_image_frames=settings.max_image_frames,
    )
