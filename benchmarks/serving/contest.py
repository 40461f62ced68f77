"""The service, the engine alone and stock vLLM score the same samples in turn; what is claimed are their ratios.

All three processes stay up and take turns round by round, so that a slow minute of the machine falls on all of them.
Every round has prompts, pictures and responses that none has seen, and the service's scores are compared with the
engine's own.
"""

import asyncio
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from beholder.load_test.mix import Item, Mix, items
from beholder.load_test.running import Load, Run, send, send_ahead
from beholder_training.demo.serving import served
from benchmarks.serving.direct import Direct, direct
from benchmarks.serving.samples import stock_items
from benchmarks.stock_vllm import stock_server

CONCURRENCY = 32
EQUAL_WITHIN = {"tiny": 1e-4, "80m": 0.5}
"""In bf16 the composition of batches moves a score."""


@dataclass(frozen=True)
class Scenario:
    """A way to send samples; `against_stock` where stock vLLM can be sent them too."""

    name: str
    mix: Mix
    against_stock: bool


def scenarios(mix: Mix) -> list[Scenario]:
    return [
        Scenario("score_by_reference", mix, True),
        Scenario("score_by_value", replace(mix, images="value"), True),
        Scenario("score_unique_images", replace(mix, images="value", unique_images=True), True),
        Scenario("rank_8", replace(mix, route="rank"), False),
        Scenario("rank_16", replace(mix, route="rank", responses=16), False),
    ]


@dataclass
class Rates:
    """Samples a second, a value a round; `client_cpu`: the load generator's share of a core.

    Tokens that service and engine alone computed, in all rounds: those that they found in the prefix cache are not.
    """

    service: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    stock: list[float] = field(default_factory=list)
    client_cpu: list[float] = field(default_factory=list)
    greatest_difference: float = 0.0
    service_tokens: int = 0
    alone_tokens: int = 0


@dataclass(frozen=True)
class Ratio:
    """Of two rates in the same round: the median over the rounds, the least and the greatest."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{self.median:5.2f} ({self.least:.2f} to {self.greatest:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    quotients = [our / their for our, their in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(quotients), min(quotients), max(quotients))


@dataclass(frozen=True)
class Contestants:
    """`concurrency`: samples that are sent at a time."""

    service: str
    stock: str
    engine: Direct
    concurrency: int = CONCURRENCY

    def play(self, scenario: Scenario, round_number: int, rates: Rates) -> None:
        """One round: every contestant scores the same samples."""
        requests = list(items(scenario.mix, round_number))
        at_a_time = max(1, self.concurrency // requests[0].samples)
        alone = self.engine.measure(scenario.mix, round_number, at_a_time)
        rates.alone.append(alone["samples_per_second"])
        rates.alone_tokens += alone["computed_tokens"]
        if scenario.mix.images == "reference":
            pictures = dict.fromkeys(item.image for item in requests if item.image)
            asyncio.run(send_ahead(self.service, pictures))
        run = send_checked(self.service, requests, at_a_time)
        rates.service.append(rate_of(run))
        rates.service_tokens += computed_tokens(run)
        rates.client_cpu.append(run.cpu_s / run.seconds)
        rates.greatest_difference = max(rates.greatest_difference, score_difference(requests, run, alone["logits"]))
        if scenario.against_stock:
            rates.stock.append(rate_of(send_checked(self.stock, stock_items(requests), self.concurrency)))


@contextmanager
def contestants(checkpoint: Path, scratch: Path, *, compiled: bool) -> Iterator[Contestants]:
    """All three, started; service and engine alone read BEHOLDER_ENGINE_ARGS."""
    with ExitStack() as stack:
        engine = stack.enter_context(direct(checkpoint, scratch / "direct.log"))
        service = stack.enter_context(served(checkpoint, scratch / "service.log"))
        stock = stack.enter_context(stock_server(checkpoint, _dtype(checkpoint), compiled=compiled))
        yield Contestants(service, stock, engine)


def contest(
    checkpoint: Path, mix: Mix, rounds: int, warm_prompts: int, scratch: Path, *, compiled: bool
) -> dict[str, Rates]:
    """The rates of every scenario, after `warm_prompts` to warm up.

    Raises RuntimeError on a wrong or missing score.
    """
    found = {}
    with contestants(checkpoint, scratch, compiled=compiled) as players:
        for number, scenario in enumerate(scenarios(mix)):
            unseen = replace(scenario, mix=replace(scenario.mix, seed=number))
            players.play(replace(unseen, mix=replace(unseen.mix, prompts=warm_prompts)), 0, Rates())
            rates = found[scenario.name] = Rates()
            for round_number in tqdm(range(1, rounds + 1), desc=f"{checkpoint.name} {scenario.name}", unit="round"):
                players.play(replace(unseen, mix=replace(unseen.mix, seed=100 * number + round_number)), 0, rates)
            if rates.greatest_difference > EQUAL_WITHIN[checkpoint.name]:
                raise RuntimeError(f"the service's scores are {rates.greatest_difference:.2g} from the engine's own")
    return found


def send_checked(url: str, requests: list[Item], concurrency: int) -> Run:
    """Send, `concurrency` at a time. Raises RuntimeError where an answer has no scores."""
    load = Load(concurrency, seconds=None, requests=len(requests))
    run = asyncio.run(send(url, requests, load, progress=False))
    if bad := [outcome for outcome in run.outcomes if outcome.status != 200]:
        raise RuntimeError(f"{url} answered {bad[0].status}: {bad[0].body[:500]!r}")
    return run


def rate_of(run: Run) -> float:
    """Samples a second."""
    return sum(outcome.item.samples for outcome in run.outcomes) / run.seconds


def computed_tokens(run: Run) -> int:
    """Of the service's answers."""
    usages = [json.loads(outcome.body)["usage"] for outcome in run.outcomes]
    return sum(usage["prompt_tokens"] - usage["cached_tokens"] for usage in usages)


def score_difference(requests: Sequence[Item], run: Run, logits: Sequence[float]) -> float:
    """The greatest between the answers' scores and `logits`, which are in the requests' order."""
    scores = {outcome.item.body: json.loads(outcome.body)["scores"] for outcome in run.outcomes}
    served_logits: list[float] = [score for item in requests for score in scores[item.body]]
    return max((abs(ours - theirs) for ours, theirs in zip(served_logits, logits, strict=True)), default=0.0)


def _dtype(checkpoint: Path) -> str:
    return str(json.loads((checkpoint / "reward.json").read_text())["dtype"])
