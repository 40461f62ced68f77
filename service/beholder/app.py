"""Wiring: settings, engine and checkpoint to an ASGI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from beholder import problems
from beholder.auth import OPEN, Gate, KeyRing
from beholder.checkpoint import Checkpoint
from beholder.decoded_images import DecodedImages
from beholder.engine import Engine
from beholder.engine.caching import CachingEngine
from beholder.errors import ConfigurationError
from beholder.image_sources import ImageLoader
from beholder.image_store import open_store
from beholder.image_urls import UrlFetcher, UrlPolicy
from beholder.lifecycle import Lifecycle
from beholder.metrics import Metrics
from beholder.middleware import Surroundings
from beholder.openapi import TITLE, add_routes
from beholder.policy_template import PolicyTemplate, open_template
from beholder.prompts import PromptRenderer
from beholder.routes.context import Context, attach
from beholder.scoring import SampleLimits, Scorer
from beholder.settings import Settings
from beholder.tracing import Tracing, create_provider


def create_app(settings: Settings, engine: Engine, checkpoint: Checkpoint, renderer: PromptRenderer) -> FastAPI:
    """The service around `engine`, which its lifespan starts in the background and stops."""
    metrics = Metrics()
    if settings.score_cache_bytes:
        engine = CachingEngine(engine, settings.score_cache_bytes, metrics)
    metrics.model.labels(checkpoint.fingerprint, checkpoint.manifest.base_model).set(1)
    lifecycle = Lifecycle(settings, engine, checkpoint, renderer, metrics)
    calibration = checkpoint.manifest.calibration
    images = _images(settings, metrics)
    limits = SampleLimits(settings.max_in_flight, settings.max_images, settings.overlong == "truncate")
    scorer = Scorer(engine, renderer, images, limits, metrics, calibration)
    policy = open_template(settings.policy_template)
    provider = create_provider(settings.otlp_endpoint, checkpoint.fingerprint) if settings.otlp_endpoint else None

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
    own_template = _own_template(renderer) or policy
    attach(app, Context(settings, checkpoint, engine, lifecycle, scorer, metrics, images, policy, own_template))
    problems.install(app, settings.shed_status)
    add_routes(app)
    _lock(app, settings)
    app.add_middleware(
        Surroundings,
        metrics=metrics,
        lifecycle=lifecycle,
        fingerprint=checkpoint.fingerprint,
        max_body_bytes=settings.max_body_bytes_in_flight,
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
    return ImageLoader(settings.image_limits, store, fetcher, settings.max_body_bytes, decoded, metrics)


def _own_template(renderer: PromptRenderer) -> PolicyTemplate | None:
    """The checkpoint's template to read strings by; None when it cannot be read back."""
    try:
        return PolicyTemplate(renderer.chat_template, *renderer.template_tokens)
    except ConfigurationError:
        return None
