"""Two replicas: what rendezvous hashing does for their caches, against requests that go to either by chance.

    python -m benchmarks.replicas CHECKPOINT

Starts two services, lets a trainer's traffic pass (GROUP responses to each question and picture,
one request each, questions in random order), and prints the share of prompt tokens that came from a cache, and samples
a second, for both ways. Writes benchmarks/results/replicas.json.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from beholder.client import AsyncRewardClient, Sample, Score
from beholder.errors import BeholderError
from beholder_training.data import Record, read_records
from beholder_training.demo.serving import served

GROUP = 8


@dataclass(frozen=True)
class Outcome:
    """`cached` is the share of prompt tokens that were not computed again."""

    cached: float
    samples_per_second: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--data", type=Path, default=Path("build/demo/prepared/world/length/responses.jsonl"))
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path("build/replicas"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/replicas.json"))
    options = parser.parse_args()
    try:
        run(options)
    except BeholderError as error:
        print(f"replicas: error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    samples = traffic(read_records([options.data])[: options.questions])
    options.work.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for routing in ("chance", "rendezvous"):
        # New processes for each, so that both begin with empty caches.
        with ExitStack() as stack:
            urls = [
                stack.enter_context(served(options.checkpoint, options.work / f"{number}.log")) for number in range(2)
            ]
            outcomes[routing] = asyncio.run(measure(urls, samples, options.concurrency, routing))
        print(f"{routing:10}  {outcomes[routing].cached:6.1%} of prompt tokens from caches  "
              f"{outcomes[routing].samples_per_second:7.1f} samples/s")  # fmt: skip
    result = {name: asdict(outcome) for name, outcome in outcomes.items()} | {"samples": len(samples), "group": GROUP}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def traffic(records: Sequence[Record], seed: int = 0) -> list[Sample]:
    """GROUP different responses to each question: as in a rollout, those to one question come one after another."""
    order = random.Random(seed).sample(list(records), len(records))
    return [
        Sample(record.prompt, record.images, f"{record.responses[number % len(record.responses)]} ({number})")
        for record in order
        for number in range(GROUP)
    ]


async def measure(urls: Sequence[str], samples: Sequence[Sample], concurrency: int, routing: str) -> Outcome:
    """Throughput and cache hits of all samples over both replicas."""
    if routing == "rendezvous":
        async with AsyncRewardClient(urls, max_concurrency=concurrency) as client:
            started = time.perf_counter()
            scores = await client.score_many(samples, progress=True)
            return _outcome(scores, time.perf_counter() - started)
    rng = random.Random(1)
    shares: list[list[Sample]] = [[] for _ in urls]
    for sample in samples:
        rng.choice(shares).append(sample)
    clients = [AsyncRewardClient(url, max_concurrency=concurrency // len(urls)) for url in urls]
    started = time.perf_counter()
    parts = await asyncio.gather(*(client.score_many(share) for client, share in zip(clients, shares, strict=True)))
    seconds = time.perf_counter() - started
    for client in clients:
        await client.aclose()
    return _outcome([score for part in parts for score in part], seconds)


def _outcome(scores: Sequence[Score], seconds: float) -> Outcome:
    cached = sum(score.cached_tokens for score in scores) / sum(score.prompt_tokens for score in scores)
    return Outcome(cached, len(scores) / seconds)


if __name__ == "__main__":
    sys.exit(main())
