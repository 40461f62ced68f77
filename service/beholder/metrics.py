"""Every Prometheus object of the service, named once, in a registry of its own. docs/metrics.md lists them.

The default registry has Python's and vLLM's own (engine/vllm_metrics.py); /metrics shows both.
"""

from collections.abc import Sequence
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SAMPLE_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
REWARD_BUCKETS: Final = (-5, -4, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5)


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
        self.stages = Histogram(
            "beholder_stage_seconds",
            "Seconds in a stage: queue (a request waits for its turn and a processor), image (its images are decoded, "
            "its prompts rendered), engine (one sample is scored).",
            ["stage"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.request_samples = Histogram(
            "beholder_request_samples", "Samples of a request.", buckets=SAMPLE_BUCKETS, registry=registry
        )
        self.images = Counter(
            "beholder_images",
            "Images of requests, by outcome: ok (decoded), known (decoded before), or the problem's code.",
            ["outcome"],
            registry=registry,
        )
        self.score_cache = Counter(
            "beholder_score_cache",
            "Samples by what the score cache did: hit, joined (the same sample was being scored), miss.",
            ["outcome"],
            registry=registry,
        )
        self.samples = Counter("beholder_samples", "Samples scored.", ["model"], registry=registry)
        self.prompt_tokens = Counter(
            "beholder_prompt_tokens", "Tokens of scored prompts, images expanded.", registry=registry
        )
        self.cached_tokens = Counter(
            "beholder_cached_tokens",
            "Prompt tokens that were spared: by a prefix that was cached or shared, or whole by the score cache.",
            registry=registry,
        )
        self.computed_tokens = Counter(
            "beholder_computed_tokens", "Prompt tokens that were computed.", registry=registry
        )
        self.oldest = Gauge(
            "beholder_oldest_sample_seconds",
            "Seconds since the oldest sample in flight was accepted.",
            registry=registry,
        )
        self.in_flight = Gauge(
            "beholder_samples_in_flight",
            "Samples accepted and not scored; a request that is being read counts as one, for a second at most.",
            registry=registry,
        )
        self.in_flight_limit = Gauge(
            "beholder_samples_in_flight_limit", "Above this, requests are refused as overloaded.", registry=registry
        )
        self.engine_running = Gauge(
            "beholder_engine_running_samples", "Samples that the engine computes now.", ["model"], registry=registry
        )
        self.engine_waiting = Gauge(
            "beholder_engine_waiting_samples",
            "Samples that wait in the engine's own queue.",
            ["model"],
            registry=registry,
        )
        self.engine_batch = Histogram(
            "beholder_engine_batch_samples",
            "Samples of a batch of the engine (vllm: that a step finished).",
            ["model"],
            buckets=SAMPLE_BUCKETS,
            registry=registry,
        )
        self.engine_up = Gauge("beholder_engine_up", "1 while the engine can score.", ["model"], registry=registry)
        self.ready = Gauge("beholder_ready", "1 while /readyz answers 200.", registry=registry)
        self.golden_passed = Gauge(
            "beholder_golden_passed", "1 when the golden samples scored as trained.", ["model"], registry=registry
        )
        self.golden_error = Gauge(
            "beholder_golden_error", "Largest distance of a golden score from training's.", ["model"], registry=registry
        )
        self.model = Gauge(
            "beholder_model_info",
            "A checkpoint that is served; always 1.",
            ["model", "fingerprint", "base_model"],
            registry=registry,
        )

        self.rewards = RewardMoments(registry)

    def render(self) -> bytes:
        """The exposition text of this registry and of the default one (process and engine)."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)


class RewardMoments:
    """What rewards are like, by model: their distribution, and sums from which mean, deviation and correlation follow.

    A reward is `normalized` where the checkpoint is calibrated, else the raw score; a length counts characters. Sums
    add up over replicas and their rates over any window. Prometheus takes a counter that falls for a restart, so sums
    that may fall are kept as two that only grow, by sign: their difference is meant.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calibrated = Gauge(
            "beholder_calibrated", "1 when rewards are in the calibration's deviations.", ["model"], registry=registry
        )
        self._distribution = Histogram(
            "beholder_normalized_reward", "Normalized rewards.", ["model"], buckets=REWARD_BUCKETS, registry=registry
        )
        self._reward = Counter(
            "beholder_reward_sum", "Sum of rewards, by their sign.", ["model", "sign"], registry=registry
        )
        self._reward_squared = Counter(
            "beholder_reward_squared", "Sum of squared rewards.", ["model"], registry=registry
        )
        self._length = Counter(
            "beholder_response_characters", "Characters of the scored responses.", ["model"], registry=registry
        )
        self._length_squared = Counter(
            "beholder_response_characters_squared", "Sum of squared lengths of responses.", ["model"], registry=registry
        )
        self._product = Counter(
            "beholder_reward_characters",
            "Sum of reward times length, by its sign.",
            ["model", "sign"],
            registry=registry,
        )

    def begin(self, model: str, *, calibrated: bool) -> None:
        """Show the sums of a model as 0, so that their first change counts in a rate."""
        self.calibrated.labels(model).set(calibrated)
        self._distribution.labels(model)
        self.observe(model, [], [], calibrated=calibrated)

    def observe(self, model: str, rewards: Sequence[float], lengths: Sequence[int], *, calibrated: bool) -> None:
        """Count one request's rewards and its responses' lengths."""
        if calibrated:
            distribution = self._distribution.labels(model)
            for reward in rewards:
                distribution.observe(reward)
        _add(self._reward, model, rewards)
        _add(self._product, model, [reward * length for reward, length in zip(rewards, lengths, strict=True)])
        self._reward_squared.labels(model).inc(sum(reward * reward for reward in rewards))
        self._length.labels(model).inc(sum(lengths))
        self._length_squared.labels(model).inc(sum(length * length for length in lengths))


def _add(counter: Counter, model: str, values: Sequence[float]) -> None:
    counter.labels(model, "positive").inc(sum(value for value in values if value > 0))
    counter.labels(model, "negative").inc(-sum(value for value in values if value < 0))
