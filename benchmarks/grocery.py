"""Real photos: train a tiny base from scratch on grocery preferences, serve it, rank unseen photos over HTTP.

    python -m benchmarks.grocery PATH/TO/grocery

PATH holds plain_train.jsonl (pairs), plain_test.jsonl and responses_test.jsonl (3 to 6 responses a photo). The same
training without the images is the text-only baseline. Prints the top-1 of both and chance; writes
benchmarks/results/grocery.json.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import transformers

from beholder_training.base_architectures import BaseSize
from beholder_training.bases import TINY, make_base
from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import Record, read_records
from beholder_training.demo.serving import rank_all, served
from beholder_training.evaluation import chance_top1, estimate, paired_difference, top1
from beholder_training.pipeline import run_training

SIZE = replace(TINY, vocabulary=1024)


def train(data: Path, folder: Path, size: BaseSize, settings: dict[str, Any], text_only: bool) -> Branch:
    """One model of the benchmark, exported to `folder`."""
    base = folder.with_name(f"{folder.name}-base")
    for stale in (folder, base):
        shutil.rmtree(stale, ignore_errors=True)
    records = read_records([data / "plain_train.jsonl"])
    make_base(base, "qwen3_vl", size, texts=[text for record in records for text in (record.prompt, *record.responses)])
    config = TrainingConfig(
        base=str(base),
        output=folder,
        train=[data / "plain_train.jsonl"],
        validation=[data / "plain_test.jsonl"],
        text_only=text_only,
        **settings,
    )
    return run_training(config)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="PATH")
    parser.add_argument("--work", type=Path, default=Path("build/grocery"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--offline", action="store_true", help="rank in this process instead of over HTTP")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/grocery.json"))
    for name, value in asdict(SIZE).items():
        if isinstance(value, int):
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parsed = parser.parse_args()
    if not (parsed.data / "plain_train.jsonl").is_file():
        sys.exit(f"{parsed.data} has no plain_train.jsonl: give the folder of the grocery data")
    transformers.logging.set_verbosity_error()
    run(parsed)


def run(parsed: argparse.Namespace) -> None:
    size = replace(SIZE, **{name: getattr(parsed, name) for name in asdict(SIZE) if hasattr(parsed, name)})
    settings = {
        "algorithm": "standard",
        "steps": parsed.steps,
        "learning_rate": parsed.learning_rate,
        "freeze_vision": False,
        "calibration_records": 1000,
    }
    test = read_records([parsed.data / "responses_test.jsonl"])
    started = time.monotonic()
    branch = train(parsed.data, parsed.work / "model", size, settings, text_only=False)
    seconds = time.monotonic() - started
    baseline = train(parsed.data, parsed.work / "text-only", size, settings, text_only=True)
    ours = rank(branch, parsed, test)
    theirs = top1(test, baseline.score(test))
    gain = paired_difference(ours, theirs)
    print(f"top-1 on {len(test)} unseen photos: {estimate(ours)}; text-only baseline {estimate(theirs)}; "
          f"chance {chance_top1(test):.3f}; gain {gain}; {seconds:.0f} s of training")  # fmt: skip
    result = {
        "top1": float(ours.mean()),
        "text_only_top1": float(theirs.mean()),
        "chance": chance_top1(test),
        "gain_half_width_95": gain.half_width,
        "training_seconds": round(seconds),
        "size": asdict(size),
        "settings": settings,
    }
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    parsed.output.write_text(json.dumps(result, indent=2) + "\n")


def rank(branch: Branch, parsed: argparse.Namespace, test: list[Record]) -> Any:
    """Top-1 of each test record, over HTTP or with the branch itself."""
    if parsed.offline:
        return top1(test, branch.score(test))
    with served(parsed.work / "model", parsed.work / "service.log") as url:
        ranked = rank_all(url, test, test, "ranking photos")
    return top1(test, [ranking.scores for ranking in ranked.rankings])


if __name__ == "__main__":
    main()
