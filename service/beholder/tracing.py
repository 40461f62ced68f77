"""OpenTelemetry traces, where `otlp_endpoint` is set: one span a request, a child of the caller's where it sent one.

Whether a request is traced is the caller's decision (`traceparent`), else OTEL_TRACES_SAMPLER's; the other OTEL_*
variables count as everywhere. Spans hold no prompts, images or keys. OpenTelemetry is imported only here and only
then: the service runs without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from beholder import __version__
from beholder.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNTRACED: Final = frozenset({"/livez", "/readyz", "/metrics"})


def create_provider(endpoint: str, fingerprint: str) -> Any:
    """A tracer provider that sends to an OTLP/HTTP collector ("http://collector:4318"). Raises ConfigurationError."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            f"otlp_endpoint needs OpenTelemetry: pip install '.[tracing]' in Beholder's checkout ({error})"
        ) from None
    resource = Resource.create(
        {"service.name": "beholder", "service.version": __version__, "beholder.fingerprint": fingerprint}
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    return provider


class Tracing:
    """Plain ASGI, around everything else."""

    def __init__(self, app: ASGIApp, provider: Any) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = provider.get_tracer("beholder", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"], self._propagator.extract(headers), kind=self._kind
        ) as span:

            async def watched_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._describe(span, scope, message["status"])
                await send(message)

            await self._app(scope, receive, watched_send)

    def _describe(self, span: Any, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", None)
        span.set_attribute("http.request.method", scope["method"])
        span.set_attribute("http.response.status_code", status)
        if route is not None:
            span.set_attribute("http.route", route)
            span.update_name(f"{scope['method']} {route}")
        if status >= 500:
            span.set_status(self._failed)
