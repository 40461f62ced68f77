"""Traces as a collector receives them."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from beholder.checkpoint import Checkpoint
from beholder.prompts import PromptRenderer
from beholder.settings import Settings
from tests.service.stand_in import StandInEngine, serving

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """An OTLP/HTTP receiver on loopback; `bodies` are what was sent to /v1/traces."""

    def __init__(self) -> None:
        bodies: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    bodies.append(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.bodies = bodies
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.mark.anyio
async def test_a_request_is_a_child_of_its_callers_span(
    settings: Settings,
    engine: StandInEngine,
    checkpoint: Checkpoint,
    renderer: PromptRenderer,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    traced = settings.model_copy(update={"otlp_endpoint": collector.url})
    sampled, unsampled = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE[::-1]}-{PARENT}-00"
    async with serving(traced, engine, checkpoint, renderer) as client:
        body = {"prompt": "a secret", "response": "r"}
        await client.post("/score", json=body, headers={"traceparent": sampled})
        await client.post("/score", json=body, headers={"traceparent": unsampled})
        await client.post("/score", json={})
    await asyncio.sleep(0)
    requests = [trace_service.ExportTraceServiceRequest.FromString(body) for body in collector.bodies]
    resources = [resource for request in requests for resource in request.resource_spans]
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    child, root = sorted(spans, key=lambda span: span.trace_id.hex() != TRACE)
    assert (child.name, child.trace_id.hex(), child.parent_span_id.hex()) == ("POST /score", TRACE, PARENT)
    assert root.parent_span_id == b""
    statuses = [{item.key: item.value for item in span.attributes} for span in (child, root)]
    assert [status["http.response.status_code"].int_value for status in statuses] == [200, 422]
    named = {item.key: item.value.string_value for item in resources[0].resource.attributes}
    assert named["service.name"] == "beholder"
    assert named["beholder.fingerprint"] == checkpoint.fingerprint
    assert not any(b"a secret" in body for body in collector.bodies)
