"""More load than the service can answer: a burst of 4,096 requests, and ten times the sustainable rate for minutes.

Nothing may be lost or wrong, memory stays bounded, /livez goes on answering, and the service recovers at once.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from beholder.load_test.mix import Item, Mix, items
from beholder.load_test.running import Load, Run, send, send_ahead
from beholder_training.demo.serving import service_process, wait_until_ready
from benchmarks.serving.contest import score_difference
from benchmarks.serving.direct import direct
from benchmarks.serving.watching import Watched, watching

BURST = 4096
OVERLOAD = 10
CONNECTIONS = 6000
"""More than the samples that the service accepts (max_in_flight), so that it has to refuse."""
EQUAL_WITHIN = 1e-4
RECOVERED_S = 1.0


@dataclass(frozen=True)
class Pressure:
    """`*_statuses`: requests by the status of their answer ("0": none). Rates are a second, of answers with scores;
    offered: what was meant to be sent, sent: what the generator got off on a machine that it shares with the service,
    answered: while it was sent and what waited then was answered; memory is that of the service's processes, in MiB;
    livez: while the overload is sent; recovery: from the last answer under overload until requests one at a time are
    answered within a second."""

    burst_statuses: dict[str, int]
    burst_seconds: float
    sustainable_rate: float
    offered_rate: float
    sent_rate: float
    overload_seconds: float
    overload_statuses: dict[str, int]
    answered_rate: float
    checked_scores: int
    greatest_difference: float
    memory_before_mib: float
    memory_peak_mib: float
    livez_median_ms: float
    livez_p99_ms: float
    livez_unanswered: int
    recovery_s: float


def measure(checkpoint: Path, mix: Mix, seconds: float, scratch: Path) -> Pressure:
    """With default settings, and requests by reference. Raises RuntimeError when a score is wrong."""
    mix = replace(mix, route="score", images="reference", seed=9)
    log = scratch / "pressure.log"
    with service_process(checkpoint, log) as (process, url):
        wait_until_ready(process, url, log)
        asyncio.run(send_ahead(url, dict.fromkeys(item.image for item in items(mix, 0) if item.image)))
        burst = _run(url, _take(mix, 0, BURST), Load(BURST, seconds=None, requests=BURST))
        sustained = _rate(_run(url, _take(mix, 1000, 600), Load(32, seconds=None, requests=600)))
        offered = OVERLOAD * sustained
        requests = _take(mix, 2000, int(offered * seconds))
        with watching(process.pid, url) as watched:
            overload = _run(url, requests, Load(CONNECTIONS, rate=offered, seconds=seconds, requests=len(requests)))
        recovery = _recovery(url, _take(mix, 900_000, 300))
    checked = _check(checkpoint, mix, burst, scratch)
    return _summary(burst, sustained, overload, seconds, watched, recovery, checked)


def _summary(
    burst: Run,
    sustained: float,
    overload: Run,
    seconds: float,
    watched: Watched,
    recovery: float,
    checked: tuple[int, float],
) -> Pressure:
    sending = overload.began, overload.began + seconds
    return Pressure(
        burst_statuses=_statuses(burst),
        burst_seconds=burst.seconds,
        sustainable_rate=sustained,
        offered_rate=OVERLOAD * sustained,
        sent_rate=len(overload.outcomes) / seconds,
        overload_seconds=overload.seconds,
        overload_statuses=_statuses(overload),
        answered_rate=_rate(overload),
        checked_scores=checked[0],
        greatest_difference=checked[1],
        memory_before_mib=watched.memory_mib[0],
        memory_peak_mib=max(watched.memory_mib),
        livez_median_ms=watched.livez_ms(0.5, *sending),
        livez_p99_ms=watched.livez_ms(0.99, *sending),
        livez_unanswered=watched.unanswered,
        recovery_s=recovery,
    )


def _take(mix: Mix, first_round: int, count: int) -> list[Item]:
    endless = itertools.chain.from_iterable(items(mix, number) for number in itertools.count(first_round))
    return list(itertools.islice(endless, count))


def _run(url: str, requests: Sequence[Item], load: Load) -> Run:
    return asyncio.run(send(url, requests, load))


def _rate(run: Run) -> float:
    return sum(outcome.status == 200 for outcome in run.outcomes) / run.seconds


def _statuses(run: Run) -> dict[str, int]:
    return {str(status): count for status, count in sorted(Counter(o.status for o in run.outcomes).items())}


def _check(checkpoint: Path, mix: Mix, burst: Run, scratch: Path) -> tuple[int, float]:
    """How many scores of the burst were computed again by the engine alone, and the greatest difference."""
    requests = list(items(mix, 0))
    with direct(checkpoint, scratch / "direct.log") as engine:
        logits = engine.measure(mix, 0, 32)["logits"]
    difference = score_difference(requests, burst, logits)
    if difference > EQUAL_WITHIN:
        raise RuntimeError(f"a score of the burst is {difference:.2g} from the engine's own")
    return len(requests), difference


def _recovery(url: str, requests: Sequence[Item]) -> float:
    """Seconds until a request sent alone is answered within RECOVERED_S."""
    started = time.perf_counter()
    for item in requests:
        (outcome,) = _run(url, [item], Load(1, seconds=None, requests=1)).outcomes
        if outcome.status == 200 and outcome.latency_s < RECOVERED_S:
            return time.perf_counter() - started - outcome.latency_s
    return float("inf")
