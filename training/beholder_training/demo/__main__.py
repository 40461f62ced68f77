"""The demo, in order: make the world, teach a base to see, train three reward models, serve one, rank over HTTP."""

import argparse
import logging
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from beholder.errors import BeholderError
from beholder_training.data import read_records
from beholder_training.demo import report
from beholder_training.demo.models import ALGORITHMS, TRAINED_ON, TestSets, prepare, train_and_evaluate
from beholder_training.demo.serving import engine_name, rank_all, served
from beholder_training.evaluation import chance_top1

SCENES = 300
SERVED = "proxy_balanced"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/demo"))
    logging.getLogger("transformers").setLevel(logging.ERROR)  # its notes on tiny configurations help nobody here
    disable_progress_bar()  # nor its bars for loading a megabyte; ours stay
    try:
        run(parser.parse_args().output)
    except BeholderError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    return 0


def run(folder: Path) -> None:
    started = time.monotonic()
    print("1/4 The built-in world, and a tiny vision-language base that is taught to see")
    world, base = prepare(folder / "prepared")
    tests = TestSets.read(world)
    outcomes = {}
    print(f"2/4 Three reward models, trained where text alone is right in 90% of pairs ({TRAINED_ON})")
    for algorithm in ALGORITHMS:
        print(f"  {algorithm}")
        outcomes[algorithm] = train_and_evaluate(world, base, folder / algorithm, algorithm, tests)
    report.print_accuracies(outcomes, tests.scenes())

    print(f"\n3/4 Serving {folder / SERVED}")
    _share_card()
    scenes = read_records([world / TRAINED_ON / "responses.jsonl"])[:SCENES]
    with served(folder / SERVED, folder / "service.log") as url:
        engine = engine_name(url)
        print(f"4/4 Ranking over HTTP with {engine}")
        ranked = rank_all(url, scenes, scenes, "ranking")
        swapped = rank_all(url, scenes, scenes[1:] + scenes[:1], "ranking, pictures swapped")
    chance = chance_top1(scenes)
    report.print_ranking(scenes, ranked, swapped, chance)
    report.print_example(scenes[0], ranked.rankings[0].scores, folder / "example.png")
    summary = {
        "engine": engine,
        **{name: {a: float(outcomes[a][name].mean()) for a in ALGORITHMS} for name in report.SETS},
        "rank_top1": ranked.top1(scenes),
        "chance": chance,
        "rank_top1_images_swapped": swapped.top1(scenes),
        "scenes": len(scenes),
        "seconds": round(time.monotonic() - started, 1),
    }
    report.write_summary(folder / "summary.json", summary)
    print(f"It took {summary['seconds']:.0f} s. Serve the model again with:\n  beholder serve {folder / SERVED}")


def _share_card() -> None:
    """vLLM would take nearly all memory of a GPU on which this process has trained."""
    if torch.cuda.is_available() and find_spec("vllm"):
        os.environ.setdefault("BEHOLDER_ENGINE_ARGS", '{"gpu_memory_utilization": 0.3}')


if __name__ == "__main__":
    sys.exit(main())
