"""How many tokens `/rank` computes of 16 responses to one prompt: the prefix once, every suffix, and little more."""

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path

from beholder.engine.vllm_loading import CPU_DEFAULTS
from beholder.load_test.mix import Mix, items
from beholder.load_test.running import Load, send
from beholder.prompts import PromptRenderer
from benchmarks.serving.samples import prompts_of

RESPONSES = 16


@dataclass(frozen=True)
class Computed:
    """Tokens of one /rank: sent, computed, and the bound (prefix, all suffixes and a cache block each)."""

    sent: int
    computed: int
    bound: int


def measure(url: str, checkpoint: Path, mix: Mix) -> Computed:
    """Of prompts that are new to the service, the worst against its bound. Raises RuntimeError without an answer."""
    mix = replace(mix, route="rank", responses=RESPONSES, images="value", seed=7_000_000)
    requests = list(items(mix, 0))
    run = asyncio.run(send(url, requests, Load(1, seconds=None, requests=len(requests)), progress=False))
    renderer = PromptRenderer.from_folder(checkpoint)
    found = []
    for outcome in run.outcomes:
        if outcome.status != 200:
            raise RuntimeError(f"/rank answered {outcome.status}: {outcome.body[:300]!r}")
        usage = json.loads(outcome.body)["usage"]
        ids = [prompt.token_ids for prompt in prompts_of(renderer, outcome.item)]
        shared = next(n for n, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1)
        suffixes = sum(len(tokens) - shared for tokens in ids)
        prefix = (usage["prompt_tokens"] - suffixes) // RESPONSES
        bound = prefix + suffixes + RESPONSES * int(CPU_DEFAULTS["block_size"])
        found.append(Computed(usage["prompt_tokens"], usage["prompt_tokens"] - usage["cached_tokens"], bound))
    return max(found, key=lambda one: one.computed / one.bound)
