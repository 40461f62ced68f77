"""Wiring: settings and models to an ASGI application."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import FastAPI

from beholder import problems
from beholder.auth import OPEN, Gate, KeyRing
from beholder.engine.caching import CachingEngine
from beholder.images import raise_pillows_limit
from beholder.images.decoded import DecodedImages
from beholder.images.sources import FetchedBytes, ImageLoader
from beholder.images.store import open_store
from beholder.images.urls import UrlFetcher, UrlPolicy
from beholder.in_flight import InFlight
from beholder.lifecycle import Lifecycle
from beholder.load_shedding import LoadShedding
from beholder.metrics import Metrics
from beholder.middleware import Surroundings
from beholder.models import Model
from beholder.openapi import TITLE, add_routes, scoring_routes
from beholder.policy_template import open_template
from beholder.routes.context import Context, attach
from beholder.scoring import Scorer
from beholder.settings import Settings
from beholder.tracing import Tracing, create_provider


def create_app(settings: Settings, models: Sequence[Model]) -> FastAPI:
    """The service around `models`, whose engines its lifespan starts in the background and stops.

    The first model is asked where a request names none.
    """
    raise_pillows_limit(settings.image_limits)
    metrics = Metrics()
    images, in_flight = _images(settings, metrics), InFlight(settings.max_in_flight, metrics)
    lifecycle = Lifecycle(settings, models, in_flight, metrics)  # golden samples are no matter of the score cache
    if cache_bytes := settings.score_cache_bytes // len(models):
        models = [replace(model, engine=CachingEngine(model.engine, cache_bytes, metrics)) for model in models]
    scorers = tuple(Scorer(model, images, metrics) for model in models)
    fingerprints = [model.fingerprint for model in models]
    provider = create_provider(settings.otlp_endpoint, ",".join(fingerprints)) if settings.otlp_endpoint else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lifecycle.start()
        try:
            yield
        finally:
            await lifecycle.stop()
            if provider is not None:
                await asyncio.to_thread(provider.shutdown)

    app = FastAPI(**TITLE, lifespan=lifespan, redoc_url=None)
    policy = open_template(settings.policy_template)
    attach(app, Context(settings, scorers, in_flight, lifecycle, metrics, images, policy))
    problems.install(app, settings.shed_status)
    add_routes(app)
    app.add_middleware(LoadShedding, in_flight=in_flight, routes=scoring_routes(app), shed_status=settings.shed_status)
    _lock(app, settings)
    app.add_middleware(
        Surroundings,
        metrics=metrics,
        lifecycle=lifecycle,
        fingerprint=fingerprints[0],
        max_body_bytes=settings.max_body_bytes_in_flight,
        log_requests=settings.log_requests,
    )
    if provider is not None:
        app.add_middleware(Tracing, provider=provider)
    return app


def _lock(app: FastAPI, settings: Settings) -> None:
    app.add_middleware(
        Gate,
        keys=KeyRing([key.get_secret_value() for key in settings.api_keys], settings.api_keys_file),
        max_per_key=settings.max_concurrent_per_key,
        shed_status=settings.shed_status,
        open_paths=OPEN if settings.metrics_need_key else OPEN | {"/metrics"},
    )


def _images(settings: Settings, metrics: Metrics) -> ImageLoader:
    fetcher = None
    if settings.image_url_hosts:
        policy = UrlPolicy(
            settings.image_url_hosts,
            settings.image_url_http,
            settings.image_url_timeout_s,
            settings.image_url_redirects,
            settings.max_image_bytes,
        )
        fetcher = UrlFetcher(policy)
    store = open_store(settings.image_store, settings.image_store_bytes, settings.image_ttl_s)
    decoded = DecodedImages(settings.max_decoded_pixels)
    fetched = FetchedBytes(settings.max_body_bytes_in_flight)
    return ImageLoader(settings.image_limits, store, fetcher, settings.max_body_bytes, decoded, metrics, fetched)
