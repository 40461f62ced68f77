"""Every Prometheus object of the service, named once, in a registry of its own.

vLLM registers its `vllm:*` in the default registry; /metrics shows both.
"""

from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One instance an application, so that tests can run several in one process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "beholder_requests",
            "Requests answered, by route and status; `code` is the problem's code or empty.",
            ["route", "status", "code"],
            registry=registry,
        )
        self.latency = Histogram(
            "beholder_request_seconds",
            "Seconds from a request's first byte to its answer.",
            ["route"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.samples = Counter("beholder_samples", "Samples scored.", registry=registry)
        self.prompt_tokens = Counter(
            "beholder_prompt_tokens", "Tokens of scored prompts, images expanded.", registry=registry
        )
        self.cached_tokens = Counter(
            "beholder_cached_tokens", "Prompt tokens that the prefix cache spared.", registry=registry
        )
        self.in_flight = Gauge("beholder_samples_in_flight", "Samples accepted and not answered.", registry=registry)
        self.in_flight_limit = Gauge(
            "beholder_samples_in_flight_limit", "Above this, requests are refused as overloaded.", registry=registry
        )
        self.engine_up = Gauge("beholder_engine_up", "1 while the engine can score.", registry=registry)
        self.ready = Gauge("beholder_ready", "1 while /readyz answers 200.", registry=registry)
        self.golden_passed = Gauge(
            "beholder_golden_passed", "1 when the golden samples scored as trained.", registry=registry
        )
        self.golden_error = Gauge(
            "beholder_golden_error", "Largest distance of a golden score from training's.", registry=registry
        )
        self.model = Gauge(
            "beholder_model_info", "The checkpoint; always 1.", ["fingerprint", "base_model"], registry=registry
        )

    def render(self) -> bytes:
        """The exposition text of this registry and of the default one (process and engine)."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)
