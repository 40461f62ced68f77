"""What a load test found: pure functions of its outcomes."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from beholder.load_test.running import Outcome, Run


@dataclass(frozen=True, slots=True)
class Summary:
    """Rates are a second of the run; latencies in milliseconds, of answers with status 200; `statuses` counts the
    requests by status, "0" those that got no answer; `client_cpu` is the generator's own share of one core."""

    requests: int
    seconds: float
    statuses: dict[str, int]
    requests_per_second: float
    samples_per_second: float
    latency_ms: dict[str, float]
    prompt_tokens: int
    computed_tokens: int
    scores_from_cache: int
    late: int
    client_cpu: float
    first_problem: str | None


def summarise(run: Run) -> Summary:
    good = [outcome for outcome in run.outcomes if outcome.status == 200]
    answers = [json.loads(outcome.body) for outcome in good]
    sent = sum(answer["usage"]["prompt_tokens"] for answer in answers)
    return Summary(
        requests=len(run.outcomes),
        seconds=run.seconds,
        statuses={str(status): count for status, count in sorted(Counter(o.status for o in run.outcomes).items())},
        requests_per_second=len(good) / run.seconds,
        samples_per_second=sum(outcome.item.samples for outcome in good) / run.seconds,
        latency_ms=_percentiles([1000 * outcome.latency_s for outcome in good]),
        prompt_tokens=sent,
        computed_tokens=sent - sum(answer["usage"]["cached_tokens"] for answer in answers),
        scores_from_cache=sum(sum(answer["cached"]) for answer in answers),
        late=run.late,
        client_cpu=run.cpu_s / run.seconds,
        first_problem=_first_problem(run.outcomes),
    )


def as_json(summary: Summary) -> dict[str, Any]:
    return asdict(summary)


def as_text(summary: Summary) -> str:
    latencies = ", ".join(f"{name} {value:.1f}" for name, value in summary.latency_ms.items())
    share = summary.computed_tokens / summary.prompt_tokens if summary.prompt_tokens else 0.0
    lines = [
        f"{summary.requests} requests in {summary.seconds:.1f} s, by status: {summary.statuses}",
        f"{summary.samples_per_second:.1f} samples/s, {summary.requests_per_second:.1f} requests/s",
        f"latency in ms: {latencies}",
        f"tokens: {summary.prompt_tokens} sent, {summary.computed_tokens} computed ({share:.0%});"
        f" {summary.scores_from_cache} scores from the cache",
        f"this client took {summary.client_cpu:.0%} of a core"
        + (f"; {summary.late} requests were sent late" if summary.late else ""),
    ]
    if summary.first_problem:
        lines.append(f"first problem: {summary.first_problem}")
    return "\n".join(lines)


def _percentiles(values: list[float]) -> dict[str, float]:
    """Nearest rank; empty where there are none."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
    }


def _first_problem(outcomes: list[Outcome]) -> str | None:
    for outcome in outcomes:
        if outcome.status != 200:
            return f"{outcome.status}: {outcome.body[:300].decode(errors='replace')}"
    return None
