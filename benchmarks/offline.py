"""Offline scoring against its own engine, and against the published code's loop; memory over the file's size.

    python -m benchmarks.offline                  20,000 responses of 5,000 scenes, in about six minutes
    python -m benchmarks.offline --scenes 500     a tenth of it

Rows, each measured in a process of its own with what it scores with loaded and warm:
    engine       one engine called directly, everything decoded and rendered in memory, with --threads of torch
    score-file   from the file on disk to the finished file, with --engines, each a process with --threads of torch
    short        score-file on a tenth of the file, for its peak memory
    published    the published loop, one process with --published-threads of torch, on the file's first scenes (its
                 time a response does not depend on their number); what it is timed with is plain Hugging Face
Engine and score-file take turns for several rounds; medians count. Writes benchmarks/results/offline.json.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from beholder.engine import EngineScore, score_group
from beholder.errors import BeholderError
from beholder.images import load_image_file
from beholder.local import trusted
from beholder.offline.backends import share_interpreter, with_small_caches
from beholder.offline.engines import EnginesBackend
from beholder.offline.scoring import Job, Position, score_file
from beholder.prompts import Prompt, single_turn
from beholder.settings import Settings, load_settings
from beholder_training.data import read_records
from beholder_training.worlds import WorldSize, make_world
from benchmarks.circumstances import circumstances
from benchmarks.parity import make_checkpoint
from benchmarks.published_scoring import PublishedLoop

EQUAL_WITHIN = 1e-4
ROWS = ("engine", "score-file", "short", "published")


@dataclass(frozen=True)
class Run:
    """`seconds` for `responses`, `peak_bytes` of the process, and the first `scores`."""

    row: str
    responses: int
    seconds: float
    peak_bytes: int
    scores: list[float]

    @property
    def rate(self) -> float:
        """Responses a second."""
        return self.responses / self.seconds


class TimedBackend(EnginesBackend):
    """Notes when the engines are ready and scoring begins."""

    started = 0.0

    @contextmanager
    def _started(self, job: Job, position: Position) -> Iterator[Any]:
        with super()._started(job, position) as engines:
            self.started = time.perf_counter()
            yield engines


def measure_score_file(settings: Settings, data: Path, in_flight: int, engines: int) -> tuple[float, list[float]]:
    backend = TimedBackend(settings, engines)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "scores.jsonl"
        score_file(Job(data, output, in_flight=in_flight, progress=False), backend)
        seconds = time.perf_counter() - backend.started
        with output.open() as lines:
            return seconds, [json.loads(line)["score"] for line in lines]


async def measure_engine(settings: Settings, data: Path, in_flight: int) -> tuple[float, list[float]]:
    share_interpreter()
    async with trusted(with_small_caches(settings)) as (engine, _, renderer):
        groups: list[list[Prompt]] = []
        for record in read_records([data]):
            images = [load_image_file(path) for path in record.images]
            conversation = single_turn(record.prompt, len(images))
            groups.append([renderer.render(conversation, response, images) for response in record.responses])
        slots = asyncio.Semaphore(in_flight // len(groups[0]))

        async def score(prompts: list[Prompt]) -> list[float]:
            async with slots:
                return list(map(logit, await score_group(engine, prompts)))

        started = time.perf_counter()
        scores = await asyncio.gather(*map(score, groups))
        return time.perf_counter() - started, [score for group in scores for score in group]


def logit(result: EngineScore | BaseException) -> float:
    if isinstance(result, BaseException):
        raise result
    return result.logit


def measure_published(checkpoint: Path, data: Path) -> tuple[float, list[float]]:
    loop = PublishedLoop(checkpoint)
    samples = [(record.prompt, record.images[0], text) for record in read_records([data]) for text in record.responses]
    list(loop.score(samples[:16]))
    started = time.perf_counter()
    scores = list(loop.score(samples))
    return time.perf_counter() - started, scores


def measure(row: str, checkpoint: Path, data: Path, parsed: argparse.Namespace) -> Run:
    """One row, in this process."""
    threads = parsed.published_threads if row == "published" else parsed.threads
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of score-file's engines
    arguments = {"max_batch_tokens": parsed.batch_tokens}
    settings = load_settings({"checkpoint": checkpoint, "engine": "transformers", "engine_args": arguments})
    if row == "engine":
        seconds, scores = asyncio.run(measure_engine(settings, data, parsed.in_flight))
    elif row == "published":
        seconds, scores = measure_published(checkpoint, data)
    else:
        seconds, scores = measure_score_file(settings, data, parsed.in_flight, parsed.engines)
    peak = peak_bytes(resource.RUSAGE_SELF)
    if row in ("score-file", "short"):  # of its engines the kernel knows the largest one's
        peak += parsed.engines * peak_bytes(resource.RUSAGE_CHILDREN)
    return Run(row, len(scores), seconds, peak, scores[:1000])


def peak_bytes(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * 1024


def in_a_process(row: str, checkpoint: Path, data: Path, parsed: argparse.Namespace) -> Run:
    """`measure` in a process of its own, since a process's peak memory never falls."""
    names = ("engines", "threads", "published_threads", "batch_tokens", "in_flight")
    options = [f"--{name.replace('_', '-')}={getattr(parsed, name)}" for name in names]
    command = [sys.executable, "-m", "benchmarks.offline", "--one", row, str(checkpoint), str(data), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    run = Run(**json.loads(done.stdout.splitlines()[-1]))
    print(f"{row:11} {run.responses:6} responses {run.rate:8.1f}/s {run.peak_bytes / 2**20:7.0f} MiB", flush=True)
    return run


def compare(folder: Path, parsed: argparse.Namespace) -> dict[str, Any]:
    """All rows, and the ratios between them. Raises BeholderError when they did not compute the same scores."""
    data = make_data(folder, parsed.scenes)
    tenth = first_lines(data, parsed.scenes // 10, "tenth.jsonl")
    some = first_lines(data, min(parsed.scenes, parsed.published_scenes), "published.jsonl")
    torch.manual_seed(0)
    make_checkpoint(folder / "checkpoint", "qwen3_vl", read_records([tenth])[:64])
    runs = []
    for _ in range(parsed.rounds):
        runs += [in_a_process(row, folder / "checkpoint", data, parsed) for row in ("engine", "score-file")]
    runs.append(in_a_process("short", folder / "checkpoint", tenth, parsed))
    runs.append(in_a_process("published", folder / "checkpoint", some, parsed))
    rate = {row: median(run.rate for run in runs if run.row == row) for row in ROWS}
    peak = {row: max(run.peak_bytes for run in runs if run.row == row) for row in ROWS}
    ratios = {
        "of_engine": rate["score-file"] / rate["engine"],
        "over_published": rate["score-file"] / rate["published"],
        "memory_of_a_tenth": peak["score-file"] / peak["short"],
    }
    difference = max(abs(a - b) for run in runs for a, b in zip(runs[0].scores, run.scores, strict=False))
    print(f"{ratios}, scores equal within {difference:.1e}")
    if difference > EQUAL_WITHIN:
        raise BeholderError(f"the rows' scores differ by {difference:.2g}: they did not compute the same")
    shown = [{name: value for name, value in asdict(run).items() if name != "scores"} for run in runs]
    return {"ratios": ratios, "score_difference": difference, "runs": shown}


def make_data(folder: Path, scenes: int) -> Path:
    """A file to score: every scene its own picture, four responses each."""
    make_world(folder / "world", WorldSize(seeing=1, train=4, test=scenes), progress=False)
    return folder / "world" / "length" / "responses.jsonl"


def first_lines(data: Path, count: int, name: str) -> Path:
    """A file beside `data` with its first records."""
    with data.open() as lines:
        data.with_name(name).write_text("".join(islice(lines, count)))
    return data.with_name(name)


def main() -> None:
    parsed = _parser().parse_args()
    random.seed(0)
    if parsed.one:
        row, checkpoint, data = parsed.one
        print(json.dumps(asdict(measure(row, Path(checkpoint), Path(data), parsed))))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = compare(Path(folder), parsed)
    settings = {name: str(value) for name, value in vars(parsed).items() if name != "one"}
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    parsed.output.write_text(
        json.dumps({**result, "settings": settings, **circumstances(("torch", "transformers", "pillow"))}, indent=2)
        + "\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--published-scenes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", type=int, default=2, help="of score-file, a process each")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for each engine")
    parser.add_argument("--published-threads", type=int, default=2, help="of torch, for the published loop: its best")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of the engine, in one forward")
    parser.add_argument("--in-flight", type=int, default=256, help="responses")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/offline.json"))
    parser.add_argument("--one", nargs=3, metavar=("ROW", "CHECKPOINT", "DATA"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
