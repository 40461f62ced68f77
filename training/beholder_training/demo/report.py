"""What the demo prints."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from beholder_training.data import Record
from beholder_training.demo.models import ALGORITHMS, Outcomes
from beholder_training.demo.serving import Ranked
from beholder_training.evaluation import estimate, paired_difference
from beholder_training.evaluation.statistics import Groups

SETS = {"iid": "i.i.d.", "cue_free": "cue-free", "ood": "o.o.d."}


def print_accuracies(outcomes: dict[str, dict[str, Outcomes]], scenes: dict[str, Groups]) -> None:
    """The table of pair accuracies with 95% intervals, and the paired differences on the o.o.d. pairs.

    `scenes` numbers the scene of every pair of a test set: the intervals are for new scenes.
    """
    print("\nPair accuracy (95% interval); o.o.d. is the cue turned round and the two other environments")
    print(f"{'model':16}" + "".join(f"{title:>18}" for title in SETS.values()))
    for algorithm in ALGORITHMS:
        cells = [str(estimate(outcomes[algorithm][name], scenes[name])) for name in SETS]
        print(f"{algorithm:16}" + "".join(f"{cell:>18}" for cell in cells))
    count = len(outcomes["standard"]["ood"])
    for algorithm in ALGORITHMS[1:]:
        difference = paired_difference(outcomes[algorithm]["ood"], outcomes["standard"]["ood"], scenes["ood"])
        print(f"{algorithm} - standard, on the same {count} o.o.d. pairs: {100 * difference.mean:+.1f}"
              f" ± {100 * difference.half_width:.1f} points")  # fmt: skip


def print_ranking(records: list[Record], ranked: Ranked, swapped: Ranked, chance: float) -> None:
    latencies = 1000 * np.percentile(ranked.latencies, [50, 95])
    responses = sum(len(record.responses) for record in records)
    print(f"\nRanked {len(records)} held-out cue-free scenes over HTTP")
    print(f"  right response first: {ranked.top1(records):.1%} (chance {chance:.1%})")
    print(f"  with the pictures swapped among scenes: {swapped.top1(records):.1%}")
    print(f"  {responses / ranked.seconds:.0f} responses/s, latency of a ranking p50 {latencies[0]:.0f} ms,"
          f" p95 {latencies[1]:.0f} ms")  # fmt: skip


def print_example(record: Record, scores: list[float], picture: Path) -> None:
    """One scene: the picture (drawn with coloured blocks on a terminal), the question, the responses by reward.

    The picture is copied to `picture`.
    """
    shutil.copyfile(record.images[0], picture)
    print(f"\nAn example: {picture}")
    if sys.stdout.isatty():
        print(_blocks(picture))
    print(f"  {record.prompt}")
    for index in np.argsort(scores)[::-1]:
        mark = "right" if record.qualities[index] == max(record.qualities) else "wrong"
        print(f"  {scores[index]:+7.3f}  {mark}  {record.responses[index]}")


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\nwrote {path}")


def _blocks(path: Path, width: int = 32) -> str:
    """The picture in half blocks: two pixels a character, 24-bit colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((width, width)))
    rows = []
    for top, bottom in zip(pixels[::2], pixels[1::2], strict=True):
        cells = (
            "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*above, *below)
            for above, below in zip(top, bottom, strict=True)
        )
        rows.append("  " + "".join(cells) + "\x1b[0m")
    return "\n".join(rows)
