"""The transformers engine against plain Hugging Face: one response at a time, and padded batches of eight.

Plain means what a user writes: the checkpoint's processor on picture and text for every response, one forward of
`AutoModel`, the head at the last token. Every contestant runs in this process, in turns, with all of its threads.
"""

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from tqdm import tqdm

from beholder.checkpoint import read_checkpoint
from beholder.engine.choosing import create_engine
from beholder.load_test.mix import Mix, items
from beholder.modeling.inputs import PromptEncoder
from beholder.modeling.reward_model import RewardModel, quiet_transformers
from beholder.modeling.scoring import score_prompts
from beholder.prompts import Prompt, PromptRenderer, read_image_token_id
from beholder.settings import load_settings
from benchmarks.serving.samples import prompts_of

BATCH = 8
LINEAR = ("aten::mm", "aten::addmm")
EQUAL_WITHIN = {torch.float32: 1e-4, torch.bfloat16: 1.0}
RMS_WITHIN = {torch.float32: 1e-4, torch.bfloat16: 0.3}
"""Of logits whose standard deviation is 4; in bfloat16 each way is 0.14 (rms) from float32, one by one too."""


@dataclass
class Rates:
    """Responses a second, a value a round.

    linear_alone: of a packed forward's linear layers, were all else free: the engine's limit on this machine.
    less_arithmetic: floating-point operations of one by one to those of one packed forward: what the ratio of the rates
    comes to where everything is packed and the arithmetic is all that takes time.
    """

    engine: list[float] = field(default_factory=list)
    one_by_one: list[float] = field(default_factory=list)
    padded: list[float] = field(default_factory=list)
    linear_alone: list[float] = field(default_factory=list)
    less_arithmetic: float = 1.0


class PlainModel:
    """The checkpoint through Hugging Face's classes alone, and `head`, (1, hidden)."""

    def __init__(self, folder: Path, dtype: torch.dtype, head: torch.nn.Module) -> None:
        from transformers import AutoModel, AutoProcessor

        with quiet_transformers():  # it reports the head, which is not the base model's
            self._backbone: Any = AutoModel.from_pretrained(folder, dtype=dtype).eval()
        self._head = head
        self._processor: Any = AutoProcessor.from_pretrained(folder)
        self.tokenizer = self._processor.tokenizer
        self.tokenizer.padding_side = "right"

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt]) -> list[float]:
        """Rewards of one padded batch."""
        texts = [self.tokenizer.decode(prompt.token_ids) for prompt in prompts]
        pictures = [image.pixels for prompt in prompts for image in prompt.images]
        inputs = self._processor(text=texts, images=pictures, padding=True, return_tensors="pt")
        hidden = self._backbone(**inputs, use_cache=False).last_hidden_state
        last = inputs["attention_mask"].sum(dim=1) - 1
        rewards: list[float] = self._head(hidden[torch.arange(len(texts)), last].float()).squeeze(-1).tolist()
        return rewards


def measure(checkpoint: Path, mix: Mix, rounds: int, sample_every: int) -> Rates:
    """Rates over `rounds`; the plain ways score every `sample_every`-th prompt of a round, all its responses.

    Raises RuntimeError when their scores differ.
    """
    return asyncio.run(_measure(checkpoint, replace(mix, route="rank", images="value"), rounds, sample_every))


async def _measure(folder: Path, mix: Mix, rounds: int, sample_every: int) -> Rates:
    checkpoint = read_checkpoint(folder)
    dtype = getattr(torch, checkpoint.manifest.dtype)
    engine = create_engine(load_settings({"checkpoint": folder, "engine": "transformers"}), checkpoint)
    await engine.start()
    packed = RewardModel.from_checkpoint(folder, dtype)
    renderer, plain, rates = PromptRenderer.from_folder(folder), PlainModel(folder, dtype, packed.score), Rates()
    encoder = PromptEncoder.from_folder(folder, read_image_token_id(folder))
    for number in tqdm(range(rounds + 1), desc=f"{folder.name} transformers engine", unit="round"):
        groups = [prompts_of(renderer, item) for item in items(replace(mix, seed=1000 + number), 0)]
        prompts = [prompt for group in groups for prompt in group]
        part = [prompt for group in groups[::sample_every] for prompt in group]
        started = time.perf_counter()
        scores = await asyncio.gather(*map(engine.score, prompts))
        engine_rate = len(prompts) / (time.perf_counter() - started)
        alone_rate, alone = _timed(plain, [[prompt] for prompt in part])
        padded_rate, padded = _timed(plain, [part[start : start + BATCH] for start in range(0, len(part), BATCH)])
        known = {id(prompt): score.logit for prompt, score in zip(prompts, scores, strict=True)}
        for plain_scores in (alone, padded):
            _require_equal([known[id(prompt)] for prompt in part], plain_scores, dtype)
        if number == 0:  # warms up
            rates.less_arithmetic = _less_arithmetic(encoder, packed, plain, groups[0])
        else:
            rates.engine.append(engine_rate)
            rates.one_by_one.append(alone_rate)
            rates.padded.append(padded_rate)
            rates.linear_alone.append(_linear_alone(encoder, packed, groups[0]))
    await engine.stop()
    return rates


def _linear_alone(encoder: PromptEncoder, packed: RewardModel, prompts: Sequence[Prompt]) -> float:
    """See Rates, for the responses to one prompt."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        score_prompts(packed, encoder, prompts)
    microseconds: float = sum(event.self_cpu_time_total for event in recorded.key_averages() if event.key in LINEAR)
    return len(prompts) / (microseconds / 1e6)


def _less_arithmetic(
    encoder: PromptEncoder, packed: RewardModel, plain: PlainModel, prompts: Sequence[Prompt]
) -> float:
    """See Rates, for the responses to one prompt."""
    alone = _operations(lambda: [plain.score([prompt]) for prompt in prompts])
    return alone / _operations(lambda: score_prompts(packed, encoder, prompts))


def _operations(compute: Callable[[], object]) -> int:
    """Of the matrix products and the attention."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which torch's own table lacks
    with FlopCounterMode(display=False, custom_mapping={on_cpu: _attention_operations}) as counter:
        compute()
    return int(counter.get_total_flops())


def _attention_operations(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))


def _timed(plain: PlainModel, batches: Sequence[Sequence[Prompt]]) -> tuple[float, list[float]]:
    started = time.perf_counter()
    scores = [score for batch in batches for score in plain.score(batch)]
    return len(scores) / (time.perf_counter() - started), scores


def _require_equal(ours: Sequence[float], theirs: Sequence[float], dtype: torch.dtype) -> None:
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    worst, rms = max(differences), math.sqrt(statistics.fmean(difference**2 for difference in differences))
    if worst > EQUAL_WITHIN[dtype] or rms > RMS_WITHIN[dtype]:
        raise RuntimeError(f"the engine's scores are {worst:.2g} (rms {rms:.2g}) from plain Hugging Face's")
