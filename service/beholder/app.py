"""Wiring: settings, engine and checkpoint to an ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from beholder import problems
from beholder.checkpoint import Checkpoint
from beholder.engine import Engine
from beholder.lifecycle import Lifecycle
from beholder.metrics import Metrics
from beholder.middleware import Surroundings
from beholder.prompts import PromptRenderer
from beholder.routes import health, scoring
from beholder.routes.context import Context, attach
from beholder.scoring import Scorer
from beholder.settings import Settings

REF = "#/components/schemas/{model}"


def create_app(settings: Settings, engine: Engine, checkpoint: Checkpoint, renderer: PromptRenderer) -> FastAPI:
    """The service around `engine`, which its lifespan starts in the background and stops."""
    metrics = Metrics()
    metrics.model.labels(checkpoint.fingerprint, checkpoint.manifest.base_model).set(1)
    lifecycle = Lifecycle(settings, engine, checkpoint, renderer, metrics)
    calibration = checkpoint.manifest.calibration
    scorer = Scorer(engine, renderer, settings.image_limits, settings.max_in_flight, metrics, calibration)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lifecycle.start()
        try:
            yield
        finally:
            await lifecycle.stop()

    app = FastAPI(title="Beholder", summary="Multimodal rewards", version="1", lifespan=lifespan, redoc_url=None)
    attach(app, Context(settings, checkpoint, engine, lifecycle, scorer, metrics))
    problems.install(app)
    app.include_router(health.router)
    app.include_router(scoring.router)
    app.add_middleware(Surroundings, metrics=metrics, lifecycle=lifecycle)
    _document_bodies(app, {"/score": scoring.SCORE, "/rank": scoring.RANK})
    return app


def _document_bodies(app: FastAPI, bodies: dict[str, TypeAdapter[Any]]) -> None:
    """Put the bodies that routes read themselves into /openapi.json."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            for path, adapter in bodies.items():
                schema = adapter.json_schema(ref_template=REF)
                document["components"]["schemas"].update(schema.pop("$defs", {}))
                body = {"required": True, "content": {"application/json": {"schema": schema}}}
                document["paths"][path]["post"]["requestBody"] = body
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
