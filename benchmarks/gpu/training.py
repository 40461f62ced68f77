"""Training at about two billion parameters on one card: packed against the published schedule, and the proxy's share.

    python -m benchmarks.gpu.training                                Qwen3-VL and InternVL shapes, random weights, bf16
    python -m benchmarks.gpu.training --size tiny --output out.json  tries the program on a CPU

A step has `--prompts` prompts with 1,800 image tokens and four completions of 200 tokens each. All schedules run in
this process, one after another, on the same weights and records. FLOP are those of the forwards and backwards, counted
by torch; utilisation is their rate over whole steps (reading, optimiser and all) against this card's measured matrix
rate; with gradient checkpointing they hold what is computed twice. The proxy's share of a step is 1 - (a step without a
proxy / a step with the text-only one).
"""

import argparse
import gc
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import set_seed

from beholder.load_test.mix import WORDS
from beholder.modeling import packed_attention
from beholder.prompts import PromptRenderer, single_turn
from beholder_training import worlds
from beholder_training.base_architectures import BaseSize
from beholder_training.bases import INTERNVL3_2B, QWEN3_VL_2B, TINY
from beholder_training.branch import Branch
from beholder_training.data import Record
from benchmarks.gpu.card import (
    Row,
    add_output,
    device,
    matrix_rate,
    output_path,
    peak_gib,
    print_table,
    reset_peak,
    write,
)
from benchmarks.gpu.stages import Clock, counting_flops, kernel_profile, staged
from benchmarks.published_schedule import PublishedTrainer
from benchmarks.random_branch import random_branch
from benchmarks.training import configure, make_records, pairs_of, train_schedule

SCHEDULES = ("published", "packed", "packed_text_only", "packed_no_proxy")
COMPLETIONS = 4
PROFILE_STEPS = 5
PAIRS_A_FORWARD = 2
"""Of the published schedule: four sequences with the whole picture each."""


@dataclass(frozen=True)
class Shape:
    """A base, the pictures (width, height) that take about 1,800 tokens in it, and what its processor is set to."""

    size: BaseSize
    picture: tuple[int, int]
    image_options: Mapping[str, Any] = field(default_factory=dict)


SHAPES: dict[str, dict[str, Shape]] = {
    "2b": {
        "qwen3_vl": Shape(QWEN3_VL_2B, (1440, 1280), {"size": {"shortest_edge": 64 * 64, "longest_edge": 1440 * 1280}}),
        "internvl": Shape(INTERNVL3_2B, (1344, 896), {"max_patches": 6}),
    },
    "tiny": {"qwen3_vl": Shape(TINY, (128, 96)), "internvl": Shape(TINY, (128, 96))},
}


class Bench:
    """One architecture's schedules on the same records."""

    def __init__(self, architecture: str, parsed: argparse.Namespace, folder: Path) -> None:
        self._architecture = architecture
        self._shape = SHAPES[parsed.size][architecture]
        self._parsed = parsed
        self._folder = folder
        self._records: list[Record] = []
        self.row_length = 0

    def run(self, schedule: str, steps: int, watch: Any) -> tuple[list[float], list[float]]:
        """`train_schedule` on weights drawn anew, and always the same."""
        parsed = self._parsed
        base = self._folder / "base"
        config = configure(
            schedule,
            base,
            self._folder / schedule,
            steps=steps,
            batch_prompts=parsed.prompts,
            bf16=True,
            gradient_checkpointing=parsed.gradient_checkpointing,
            workers=parsed.workers,
        )
        gc.collect()
        reset_peak()
        main = self._branch(base)
        proxy = self._branch(base, sees_images=schedule != "packed_text_only") if config.needs_proxy else None
        if proxy is not None:
            proxy.blank_images = proxy.sees_images
        if not self._records:
            self._records = self._make_records(main)
            self.row_length = len(main.encode(self._records[0])[0].packed.token_ids)
        set_seed(0)
        return train_schedule(schedule, config, self._records, main, proxy, watch)

    def _branch(self, folder: Path, sees_images: bool = True) -> Branch:
        branch = random_branch(folder, self._architecture, self._shape.size, device(), sees_images)
        branch.encoder.set_image_options(self._shape.image_options)
        return branch

    def _make_records(self, branch: Branch) -> list[Record]:
        parsed, rng, records = self._parsed, random.Random(0), []
        renderer = branch.renderer
        for record in make_records(self._folder, parsed.prompts * parsed.steps, COMPLETIONS, worlds.IMAGE_SIZE):
            for path in record.images:
                with Image.open(path) as picture:
                    picture.resize(self._shape.picture, Image.Resampling.NEAREST).save(path, compress_level=1)
            longer = tuple(_lengthened(text, renderer, parsed.completion_tokens, rng) for text in record.responses)
            records.append(replace(record, responses=longer))
        return records


def _lengthened(text: str, renderer: PromptRenderer, tokens: int, rng: random.Random) -> str:
    """`text` and random words after it, `tokens` tokens together."""
    empty = len(renderer.token_ids(single_turn("p", 0), ""))
    while len(renderer.token_ids(single_turn("p", 0), text)) - empty < tokens:
        text += " " + rng.choice(WORDS)
    return text


def measure(bench: Bench, name: str, schedule: str, rate: float, parsed: argparse.Namespace) -> Row:
    """One row; only its names where the card's memory does not hold the schedule."""
    flops: list[int] = []
    row: Row = dict.fromkeys(("pairs_per_second", "step_seconds", "peak_gib", "tflop_a_step", "utilisation"))
    row = {"architecture": name, "schedule": schedule, **row, "first_loss": None}
    try:
        losses, ends = bench.run(schedule, parsed.steps, lambda loop: counting_flops(loop, flops))
    except torch.OutOfMemoryError:
        return row | {"schedule": f"{schedule} (out of memory)"}
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    return row | {
        "pairs_per_second": parsed.prompts * pairs_of(COMPLETIONS) / seconds,
        "step_seconds": seconds,
        "peak_gib": peak_gib(),
        "tflop_a_step": flops[0] / 1e12,
        "utilisation": flops[0] / seconds / rate,
        "first_loss": losses[0],
    }


def profile(bench: Bench) -> tuple[dict[str, float], list[Row]]:
    """Shares of a step with the text-only proxy by stage, and the longest kernels of its forwards and backwards."""
    clock, kernels = Clock(), list[Row]()
    bench.run("packed_text_only", PROFILE_STEPS, lambda loop: staged(loop, clock))
    total = sum(clock.seconds.values())
    shares = {stage: value / total for stage, value in sorted(clock.seconds.items(), key=lambda item: -item[1])}
    bench.run("packed_text_only", PROFILE_STEPS, lambda loop: kernel_profile(loop, kernels))
    return shares, kernels


def ratios_of(rows: Sequence[Row]) -> dict[str, float]:
    """What was packed against the published schedule, and the text-only proxy's share, by architecture."""
    seconds = {(row["architecture"], row["schedule"]): row["step_seconds"] for row in rows}
    found = {}
    for architecture in dict.fromkeys(row["architecture"] for row in rows):
        published, packed, text_only, alone = (seconds.get((architecture, name)) for name in SCHEDULES)
        for name, ours in (("packed", packed), ("packed_text_only", text_only)):
            if published and ours:
                found[f"{architecture}_{name}_vs_published"] = published / ours
        if text_only and alone:
            found[f"{architecture}_text_only_proxy_share"] = 1 - alone / text_only
    return found


def main() -> None:
    parser = _parser()
    parsed = parser.parse_args()
    output = output_path(parser, parsed, "training")
    PublishedTrainer.pairs_a_forward = PAIRS_A_FORWARD
    if parsed.attention_gain is not None:
        packed_attention.GAIN = parsed.attention_gain  # type: ignore[misc]  # final in the product, tried here
    rate = matrix_rate()
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for architecture in parsed.architectures:
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(architecture, parsed, Path(scratch))
            for schedule in parsed.schedules:
                rows.append(measure(bench, architecture, schedule, rate, parsed))
                print_table(rows[-1:])
                _write(output, rows, rate, details, parsed)
            if "packed_text_only" in parsed.schedules:
                stages, kernels = profile(bench)
                details[architecture] = {"row_tokens": bench.row_length, "stages": stages, "kernels": kernels}
                _write(output, rows, rate, details, parsed)
    for architecture, found in details.items():
        print(f"\n{architecture}: {found['row_tokens']} tokens a packed row; a step with the text-only proxy")
        print_table([{"stage": stage, "share": share} for stage, share in found["stages"].items()])
        print_table(found["kernels"])
    print(f"\nmatrix rate {rate / 1e12:.3g} TFLOP/s")
    print_table(rows)
    print_table([{"ratio": name, "value": value} for name, value in ratios_of(rows).items()])
    print(f"wrote {output}")


def _write(
    output: Path, rows: Sequence[Row], rate: float, details: Mapping[str, Any], parsed: argparse.Namespace
) -> None:
    command, tflops = "python -m benchmarks.gpu.training", rate / 1e12
    write(output, command, rows, parsed, ratios=ratios_of(rows), matrix_tflops=tflops, details=details)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SHAPES), default="2b")
    parser.add_argument("--architectures", nargs="+", choices=list(SHAPES["2b"]), default=list(SHAPES["2b"]))
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=2, help="prompts a step")
    parser.add_argument("--completion-tokens", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0, help="processes that read and encode ahead")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="for cards with less memory")
    parser.add_argument(
        "--attention-gain", type=float, help="packed_attention.GAIN, to find this card's; 0: never a mask"
    )
    add_output(parser)
    return parser


if __name__ == "__main__":
    main()
