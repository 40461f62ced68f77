"""How much faster the packed forward trains than the published schedule, on the same model, data, losses and machine.

    python -m benchmarks.training                      an 80M base, 448 px: the README's figures, in 12 minutes
    python -m benchmarks.training --base tiny --side 128 --steps 20 --prompts 4      in a minute

Three runs for each number of responses a prompt: the published schedule with its blank-image proxy, ours with the same
proxy (the losses must be equal), ours with the text-only proxy. Each runs in a process of its own, for its peak memory.
Writes benchmarks/results/training.json.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from beholder.errors import BeholderError
from beholder_training import worlds
from beholder_training.data import Record
from benchmarks.circumstances import circumstances

if TYPE_CHECKING:
    from beholder_training.branch import Branch
    from beholder_training.config import TrainingConfig

SCHEDULES = ("published", "packed", "packed_text_only")
EQUAL_STEPS = 20
EQUAL_WITHIN = 1e-4


@dataclass(frozen=True)
class Run:
    """losses: of every step. pairs_per_second: without the first step. peak_bytes: of the whole process."""

    schedule: str
    responses: int
    losses: list[float]
    pairs_per_second: float
    peak_bytes: int


def make_records(folder: Path, count: int, responses: int, side: int, seed: int = 0) -> list[Record]:
    """Scenes of `side` pixels with `responses` answers of different quality, so every two of them are a pair."""
    rng = random.Random(seed)
    records = []
    for number in range(count):
        scene = worlds.draw_scene(rng)
        path = folder / f"{number}.png"
        worlds.render(scene).resize((side, side), Image.Resampling.NEAREST).save(path)
        question = worlds.ask(rng, scene)
        answers = [worlds.phrase(text, rng.choice(worlds.STYLES)) for text in (question.right, *question.wrong)]
        qualities = tuple(float(responses - place) for place in range(responses))
        records.append(Record(str(number), question.text, (path,), tuple(answers[:responses]), qualities, str(path)))
    return records


def measure(schedule: str, base: Path, responses: int, parsed: argparse.Namespace) -> Run:
    """Train one model in this process."""
    import torch
    from transformers import set_seed

    from beholder_training.pipeline import make_branches

    torch.set_num_threads(parsed.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        records = make_records(folder, parsed.prompts * parsed.steps, responses, parsed.side)
        config = configure(schedule, base, folder / schedule, steps=parsed.steps, batch_prompts=parsed.prompts)
        set_seed(0)
        losses, ends = train_schedule(schedule, config, records, *make_branches(config))
    speed = parsed.prompts * pairs_of(responses) * (len(ends) - 1) / (ends[-1] - ends[0])
    return Run(schedule, responses, losses, speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def pairs_of(responses: int) -> int:
    """Of responses that all differ in quality."""
    return responses * (responses - 1) // 2


def configure(schedule: str, base: Path, output: Path, **settings: Any) -> "TrainingConfig":
    """A run of `schedule`; "packed_no_proxy" has no proxy at all, so weights of 1."""
    from beholder_training.config import TrainingConfig

    return TrainingConfig(
        base=str(base),
        output=output,
        train=[output],
        validation=[output],
        algorithm="standard" if schedule == "packed_no_proxy" else "sfc",
        proxy_input="text_only" if schedule == "packed_text_only" else "blank_image",
        learning_rate=1e-4,
        logging_steps=1,
        **settings,
    )


def train_schedule(
    schedule: str,
    config: "TrainingConfig",
    records: Sequence[Record],
    main: "Branch",
    proxy: "Branch | None",
    watch: Callable[[Any], Any] = lambda loop: loop,
) -> tuple[list[float], list[float]]:
    """The loss of every step, and when it had been logged. `watch` makes another trainer of the schedule's."""
    from beholder_training.runs import train
    from beholder_training.trainer import RewardTrainer
    from benchmarks.published_schedule import PublishedTrainer

    for branch in (main, proxy):
        if branch is not None:
            branch.packed = schedule != "published"
    ends: list[float] = []
    loop = watch(PublishedTrainer if schedule == "published" else RewardTrainer)
    trainer = train(config, records, main, proxy, timed(loop, ends))
    return [line["loss"] for line in trainer.state.log_history if "learning_rate" in line], ends


def timed(trainer_class: Any, ends: list[float]) -> Any:
    """A trainer that notes when each step has been logged."""

    class Timed(trainer_class):  # type: ignore[misc]
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs, start_time)
            if "learning_rate" in logs:
                ends.append(time.monotonic())

    return Timed


def in_a_process(schedule: str, base: Path, responses: int, parsed: argparse.Namespace) -> Run:
    """`measure` in a process of its own."""
    options = [f"--{name}={getattr(parsed, name)}" for name in ("side", "steps", "prompts", "threads")]
    command = [sys.executable, "-m", "benchmarks.training", "--one", schedule, "--folder", str(base), *options]
    done = subprocess.run([*command, f"--responses={responses}"], stdout=subprocess.PIPE, text=True, check=True)
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def require_equal(published: Run, packed: Run) -> float:
    """The greatest difference of the first losses. Raises BeholderError when it is more than rounding."""
    pairs = list(zip(published.losses[:EQUAL_STEPS], packed.losses[:EQUAL_STEPS], strict=True))
    difference = max(abs(ours - theirs) for ours, theirs in pairs)
    if difference > EQUAL_WITHIN:
        raise BeholderError(f"the packed losses differ from the published schedule's by {difference:.2g}")
    return difference


def compare(base: Path, responses: int, parsed: argparse.Namespace) -> tuple[dict[str, float], list[Run]]:
    """The ratios for one number of responses a prompt, and the runs."""
    runs = [in_a_process(schedule, base, responses, parsed) for schedule in SCHEDULES]
    published, packed, text_only = runs
    difference = require_equal(published, packed)
    ratios = {
        f"blank_image_{responses}": packed.pairs_per_second / published.pairs_per_second,
        f"text_only_{responses}": text_only.pairs_per_second / published.pairs_per_second,
    }
    for run in runs:
        speed, factor = run.pairs_per_second, run.pairs_per_second / published.pairs_per_second
        memory = run.peak_bytes / 2**30
        print(
            f"{responses} responses {run.schedule:17} {speed:8.2f} pairs/s {factor:6.2f}x {memory:6.2f} GiB", flush=True
        )
    print(f"first {min(EQUAL_STEPS, parsed.steps)} losses equal within {difference:.1e}", flush=True)
    return ratios, runs


def main() -> None:
    parsed = _parser().parse_args()
    if parsed.one:
        print(json.dumps(asdict(measure(parsed.one, parsed.folder, parsed.responses[0], parsed))))
        return
    from beholder_training.bases import BENCHMARK_80M, TINY, make_base

    ratios: dict[str, float] = {}
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        make_base(base, parsed.architecture, BENCHMARK_80M if parsed.base == "80m" else TINY)
        for responses in parsed.responses:
            more, found = compare(base, responses, parsed)
            ratios |= more
            runs += found
    result = {
        "ratios": ratios,
        "runs": [asdict(run) for run in runs],
        "settings": {name: str(value) for name, value in vars(parsed).items() if name not in ("one", "folder")},
        **circumstances(("torch", "transformers")),
    }
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    parsed.output.write_text(json.dumps(result, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=("80m", "tiny"), default="80m")
    parser.add_argument("--architecture", default="qwen3_vl")
    parser.add_argument("--responses", type=int, nargs="+", default=[4, 2], help="responses a prompt")
    parser.add_argument("--side", type=int, default=448, help="pixels of the square pictures")
    parser.add_argument("--steps", type=int, default=EQUAL_STEPS)
    parser.add_argument("--prompts", type=int, default=1, help="prompts a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/training.json"))
    parser.add_argument("--one", choices=SCHEDULES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
